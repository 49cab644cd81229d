"""Whether an op that nobody knows stands where an attention stands: between projections.

::

    %q = view(linear(%x, %wq))       three tensors of one head layout,
    %k = view(linear(%x, %wk))       each made by a projection,
    %v = view(linear(%x, %wv))
    %o = fa3_fwd(%q, %k, %v)         one tensor like the first,
    %y = linear(view(%o), %wo)       which a projection reads

Each of these can be wrong alone. All of them together are rarely anything but an attention.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.contractions import contraction
from pab_compile.passes.graph.ops import CASTS, COPIES
from pab_compile.passes.graph.walk import look_through, picks, reached

from .atoms import Dim, leaves

_MAX_NODES = 200
_SUMS = ("add", "sub", "addcmul", "lerp", "where")
_JOINS = ("cat", "concat", "concatenate")


def stands_as_attention(
    node: fx.Node, operands: tuple[fx.Node, ...], dims_of: Callable[[fx.Node], tuple[Dim, ...]]
) -> bool:
    """Whether an op looks like an attention by its operands, its result and its place.

    Args:
        node: an op of which nothing is known.
        operands: its first three tensors.
        dims_of: gives the axes of an operand. Heads are a factor of what a projection made.
    """
    if not ir.is_foreign(node) or len(set(operands)) < 3:
        return False
    if not _have_one_layout(node, operands) or not _has_heads(dims_of(operands[0])):
        return False
    return all(_is_projected(operand) for operand in operands) and _is_read_by_projection(node)


def _have_one_layout(node: fx.Node, operands: tuple[fx.Node, ...]) -> bool:
    """Whether keys and values fit, queries differ from keys in one dimension, and so on."""
    query, key, value = (tuple(ir.shape(operand) or ()) for operand in operands)
    results = ir.tensors(node)
    if not len(query) == len(key) == len(value) > 2 or not results:
        return False
    types = {tensor.dtype for operand in operands for tensor in ir.tensors(operand)}
    differ = [a != b for a, b in zip(query, key, strict=True)]
    fits = key[:-1] == value[:-1] and not differ[-1] and sum(differ) < 2
    result = tuple(ir.layouts(node)[0].sizes)
    return fits and len(types) == 1 and result == (*query[:-1], value[-1])


def _has_heads(dims: tuple[Dim, ...]) -> bool:
    """Whether heads are split from the channels: a dimension of their own, or beside another."""
    outer = [atom for dim in dims[:-1] for atom in leaves(dim)]
    return len(dims) > 3 or any(atom.feature and not atom.origins for atom in outer)


def _is_projected(operand: fx.Node) -> bool:
    """Whether a tensor is the result of one projection, or of several side by side."""
    known: dict[fx.Node, frozenset[fx.Node] | None] = {}

    def made_by(node: fx.Node) -> frozenset[fx.Node] | None:
        """The projections that a tensor comes from; None where they do not explain it."""
        if node not in known:
            known[node] = None if len(known) > _MAX_NODES else _made_by(node)
        return known[node]

    def _made_by(node: fx.Node) -> frozenset[fx.Node] | None:
        if node.op != "call_function":
            return frozenset()
        if activation(node) is not None:
            return frozenset({node})
        if (contraction(node) is not None and _sums(node)) or ir.is_foreign(node):
            return None
        found = [made_by(source) for source in node.all_input_nodes]
        made = [each for each in found if each]
        if ir.is_call(node, *_SUMS) and made:  # a residual stream is not made by its last summand
            rest = [n for n in node.all_input_nodes if not made_by(n)]
            found += [None for n in rest if not _is_weight(n)]
        if None in found or not made:
            return None if None in found else frozenset()
        if ir.is_call(node, *_JOINS) or all(_are_one(made[0], other) for other in made[1:]):
            return frozenset[fx.Node]().union(*made)
        return None

    return bool(made_by(operand))


def _sums(node: fx.Node) -> bool:
    spec = contraction(node)
    return spec is not None and bool(spec.summed)


def _are_one(left: frozenset[fx.Node], right: frozenset[fx.Node]) -> bool:
    """Whether two results come from the same projections, or from one with its adapter.

    An adapter is a second way through projections that begins at the same tensor.
    """
    if left & right:
        return True
    begins = [{x for node in each for x in _way_back(node)} for each in (left, right)]
    return not begins[0].isdisjoint(begins[1])


def _way_back(node: fx.Node) -> list[fx.Node]:
    """What a projection reads and, if that is the result of another, what this one reads."""
    found: list[fx.Node] = []
    source = activation(node)
    while source is not None and len(found) < 4:
        found.append(source)
        source = activation(look_through(source, CASTS | COPIES))
    return found


def activation(node: fx.Node) -> fx.Node | None:
    """What a projection projects: the operand that is no weight. None if it is no projection."""
    if ir.is_call(node, "conv1d", "conv2d", "conv3d", "convolution"):
        return node.all_input_nodes[0]
    spec = contraction(node)
    if spec is None or len(spec.operands) != 2 or not spec.summed:
        return None
    weights = [operand for operand in spec.operands if _is_weight(operand)]
    rest = [operand for operand in spec.operands if operand not in weights]
    return rest[0] if len(weights) == len(rest) == 1 else None


def _is_weight(node: fx.Node) -> bool:
    """Whether a value comes from weights alone, in a few steps."""
    for count, source in enumerate((node, *reached([node], lambda n: n.all_input_nodes))):
        is_input = source.op == "placeholder" and not ir.is_constant_input(source)
        if is_input or count > _MAX_NODES:
            return False
    return True


def _is_read_by_projection(node: fx.Node) -> bool:
    """Whether the first result reaches a projection before it meets another tensor in a sum."""
    several = isinstance(ir.value(node), (list, tuple))
    starts = [pick for pick in picks(node) if pick.args[1] == 0] if several else [node]

    def onward(at: fx.Node) -> list[fx.Node]:
        return [user for user in at.users if not _ends(user)]

    every = [*starts, *reached(starts, onward)]
    return any(activation(user) in every for at in every for user in at.users)


def _ends(node: fx.Node) -> bool:
    """Whether a way from an attention to its projection does not lead through this node."""
    if node.op != "call_function" or ir.is_foreign(node) or contraction(node) is not None:
        return True
    several = len([n for n in node.all_input_nodes if not _is_weight(n)]) > 1
    return several and ir.is_call(node, *_SUMS)
