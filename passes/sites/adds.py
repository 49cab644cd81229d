"""Residual additions: the one place that says which value is added to which stream.

In ``%y = add(%x, %o)``, ``%o`` is added to the stream ``%x``. The op alone does not say which
operand is the stream. A pass looks at both readings, or says what lies before the added value.

Sums are ``add``, ``sub`` and ``where``. In ``sub`` the first operand is the stream. A ``where``
chooses between two values by a mask, which must not depend on the latents. Ops that multiply and
add in one are taken apart at the capture (``passes.graph.fused``).

A stream is the same one behind a cast between floating types, a view or a copy::

    %f = _to_copy(%x, dtype=float32)
    %y = add(%f, %o)             # %o is added to %x
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import NamedTuple

from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.fused import is_factor, is_scaled_stream
from pab_compile.passes.graph.ops import CASTS, COPIES, RARE_RESHAPES, RARE_SPLITS, SPLITS, VIEWS
from pab_compile.passes.graph.walk import chain

from .binding import Binding

_ADD = "add"
_SUB = "sub"
_VIEWS = VIEWS | COPIES | RARE_RESHAPES
_SPLITS = SPLITS | RARE_SPLITS


class Addition(NamedTuple):
    """One reading of a sum: a value is added to a stream."""

    stream: fx.Node
    added: fx.Node


def is_plain_add(node: fx.Node) -> bool:
    """Whether the node adds or subtracts two tensors, each with the factor one."""
    plain = ir.is_call(node, _ADD, _SUB) and not node.kwargs
    return plain and len(node.args) == len(node.all_input_nodes) == 2


def is_choice(node: fx.Node) -> bool:
    """Whether the node chooses between values by a mask that does not depend on the latents."""
    if not ir.is_call(node, "where") or len(node.args) != 3:
        return False
    mask = node.args[0]
    return isinstance(mask, fx.Node) and ir.binding(mask) not in (None, Binding.LATENT)


def parts(node: fx.Node) -> list[fx.Node]:
    """The tensors that a sum consists of, in order; none of another op."""
    if ir.is_call(node, _ADD, _SUB):
        return [n for n in node.args if isinstance(n, fx.Node)]
    if is_choice(node):
        return [n for n in node.args[1:] if isinstance(n, fx.Node)]
    return []


def readings(node: fx.Node) -> tuple[Addition, ...]:
    """The readings of a sum of two values that depend on the latents; none of another op."""
    if ir.binding(node) != Binding.LATENT:
        return ()
    latent = dict.fromkeys(n for n in parts(node) if ir.binding(n) == Binding.LATENT)
    if len(latent) != 2:
        return ()
    one, other = latent
    forward = Addition(one, other)
    return (forward,) if ir.is_call(node, _SUB) else (forward, Addition(other, one))


def stream_of(node: fx.Node, before: Container[fx.Node]) -> fx.Node | None:
    """The stream that a node adds to or subtracts from; None where it does neither.

    Args:
        node: any node.
        before: what the added value is computed from. The stream is one of these, no constant.
    """
    operands = node.all_input_nodes if ir.is_call(node, "rsub") else parts(node)
    sources = [n for n in operands if ir.binding(n) != Binding.CONSTANT]
    return next((n for n in sources if n in before or _is_stream(n, node, before)), None)


def _is_stream(node: fx.Node, total: fx.Node, before: Container[fx.Node]) -> bool:
    """Whether an operand of a sum is one of some values, of the size of the sum."""
    if ir.shape(node) != ir.shape(total):
        return False
    return any(n in before for n in chain(node, lambda n: same(n) or scaled(n)))


def terms(node: fx.Node, depth: int = 3) -> Iterator[fx.Node]:
    """The origin of a value and, where it is a sum, of the values that were added up to it."""
    value = origin(node)
    yield value
    if (inner := scaled(value)) is not None:
        yield from terms(inner, depth)
    elif depth:
        for operand in parts(value):
            yield from terms(operand, depth - 1)


def origin(node: fx.Node) -> fx.Node:
    """The value that a node casts, views or copies; the node itself if it does not."""
    *_, last = chain(node, same)
    return last


def same(node: fx.Node) -> fx.Node | None:
    """The operand of which a node has the same elements; None for any other op."""
    if not ir.is_call(node, *CASTS, *_VIEWS) or len(node.all_input_nodes) != 1:
        return None
    source = node.all_input_nodes[0]
    made, given = ir.tensor(node), ir.tensor(source)
    if made is None or given is None or ir.num_elements(node) != ir.num_elements(source):
        return None
    is_cast = ir.is_call(node, *CASTS) and is_number(node) and is_number(source)
    return source if is_cast or made.dtype == given.dtype else None


def part_of(node: fx.Node) -> fx.Node | None:
    """The tensor of which a node is a slice, or one of the parts; None for any other op."""
    if ir.is_getitem(node) and ir.is_call(node.all_input_nodes[0], *_SPLITS):
        node = node.all_input_nodes[0]
    elif not ir.is_call(node, "slice", "narrow"):
        return None
    return node.all_input_nodes[0] if len(node.all_input_nodes) == 1 else None


def is_number(node: fx.Node) -> bool:
    """Whether the elements of a tensor are floating, of a type to compute in: two bytes or more."""
    tensor = ir.tensor(node)
    return tensor is not None and tensor.is_floating_point() and tensor.element_size() > 1


def scaled(node: fx.Node) -> fx.Node | None:
    """The value that a node scales as a stream may be scaled; None for any other op.

    The factor does not depend on the latents. It belongs to ``lerp``, or is one number or one per
    channel that is the same at every step, as in ``0.9 * x + f(x)``.
    """
    latent = [n for n in node.all_input_nodes if ir.binding(n) in (None, Binding.LATENT)]
    if not (is_scaled_stream(node) or _has_plain_factor(node)):
        return None
    if latent and latent != [node.args[0]]:
        return None
    return node.all_input_nodes[0]


def _has_plain_factor(node: fx.Node) -> bool:
    """Whether a node multiplies its first operand by a number, or by weights per channel."""
    if not ir.is_call(node, "mul", "div") or node.kwargs or len(node.args) != 2:
        return False
    source, factor = node.args
    if not isinstance(source, fx.Node) or ir.shape(source) != ir.shape(node):
        return False
    if not isinstance(factor, fx.Node):
        return isinstance(factor, (int, float))
    sizes = ir.shape(factor)
    is_vector = sizes is not None and all(size == 1 for size in sizes[:-1])
    return is_vector and ir.binding(factor) == Binding.CONSTANT


def to_cache(node: fx.Node, within: Container[fx.Node]) -> fx.Node:
    """What to cache in the place of a value from which it is made by views, casts and constants.

    It is the tensor of the fewest bytes. It lies before the factors of a fused sum that are the
    same at every step, so that the sum stays whole.

    Args:
        node: a tensor.
        within: the nodes that may take its place.
    """

    def before(n: fx.Node) -> fx.Node | None:
        source = same(n)
        return source if source is not None and source in within else None

    while (source := constant_factor(node)) is not None and source in within:
        node = source
    return min(chain(node, before), key=ir.num_bytes)  # the first of several


def constant_factor(node: fx.Node) -> fx.Node | None:
    """What a factor of a fused sum scales, if it is the same at every step; None for others."""
    latent = [n for n in node.all_input_nodes if ir.binding(n) == Binding.LATENT]
    fixed = all(ir.binding(n) != Binding.STEP for n in node.all_input_nodes)
    return latent[0] if is_factor(node) and len(latent) == 1 and fixed else None
