"""Sums: values of a graph that consist of a computed part and a loaded part.

The *given* values are what sites hand on. A value is *carried* if only sums, concatenations, views
and casts lie between it and the given values. On a step that reuses them, it is the sum of a
computed part and a loaded part. An *exit* is a carried value that another op reads. There the sum
has to be added up, and the values after it are computed from the result.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.ops import CASTS, COPIES, PARTS, VIEWS
from pab_compile.passes.graph.walk import chain
from pab_compile.passes.sites.adds import is_choice, is_number, is_plain_add, parts, same, scaled
from pab_compile.passes.sites.binding import Binding

_VIEWS = VIEWS | PARTS | COPIES
_WHERE = torch.ops.aten.where


@dataclass(frozen=True, eq=False)
class Sums:
    """The carried values of a graph.

    Attributes:
        carried: in graph order.
        exits: the carried values that are added up, in graph order.
        terms: carried value -> the given values in it, up to the exits before it.
        live: the nodes that are computed or loaded on a step that reuses the given values.
    """

    carried: tuple[fx.Node, ...]
    exits: dict[fx.Node, None]
    terms: Mapping[fx.Node, tuple[fx.Node, ...]]
    live: frozenset[fx.Node]

    def reader(self, exit_: fx.Node) -> fx.Node:
        """The first node that reads an exit as one value."""
        return next(u for u in ir.users(exit_) if u in self.live and u not in self.terms)

    def is_inside(self, node: fx.Node) -> bool:
        """Whether a value has a loaded part and is not added up."""
        return bool(self.terms.get(node)) and node not in self.exits


def live_nodes(graph: fx.Graph, given: frozenset[fx.Node]) -> frozenset[fx.Node]:
    """The nodes that must run if some values are given, and the given values that they read."""
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        # A collective is no root: if it re-shards for a site, it belongs to the site.
        is_root = node.op == "output" or (node.op == "call_function" and ir.has_effect(node))
        if is_root or any(user in live and user not in given for user in node.users):
            live.add(node)
    return frozenset(live)


def may_carry(node: fx.Node) -> bool:
    """Whether the op can be applied to the parts of a sum one by one."""
    is_sum = ir.is_call(node, "add", "sub") or _is_fixed_choice(node) or _factored(node) is not None
    return is_sum or ir.is_call(node, "cat", *_VIEWS, *CASTS)


def find_sums(graph: fx.Graph, given: frozenset[fx.Node]) -> Sums:
    """Find the carried values of a graph, the exits among them, and their terms."""
    live = live_nodes(graph, given)
    mixed: set[fx.Node] = set()
    while True:  # a concatenation of carried and other values turns out to be no carried value
        carried: dict[fx.Node, None] = {}
        for node in graph.nodes:
            if node in live and (node in given or (node not in mixed and _is_sum(node, carried))):
                carried[node] = None
        for node in reversed(list(carried)):
            if _is_widened(node, carried, given):
                del carried[node]
        exits = {
            node: None
            for node in carried
            if any(user in live and user not in carried for user in node.users)
        }
        terms: dict[fx.Node, tuple[fx.Node, ...]] = {}
        bare: set[fx.Node] = set()  # without a computed part
        new: set[fx.Node] = set()
        for node in carried:
            if node in given:
                terms[node] = (node,)
                bare.add(node)
                continue
            inside = [n for n in node.all_input_nodes if n in carried and n not in exits]
            terms[node] = tuple(dict.fromkeys(t for n in inside for t in terms[n]))
            loaded = [n for n in inside if terms[n]]
            operands = _operands(node)
            if len(loaded) == len(operands) and bare.issuperset(loaded):
                bare.add(node)
            elif loaded and ir.is_call(node, "cat"):
                is_whole = len(loaded) == len(operands) and bare.isdisjoint(loaded)
                new |= set() if is_whole else {node}
            elif ir.is_call(node, "sub"):
                new |= {node} if operands[0] in bare else set()
            if loaded and _factored(node) is not None:  # a gate is no factor of the stream
                new |= {node} if loaded[0] in bare else set()
        if not new:
            return Sums(tuple(carried), exits, terms, live)
        mixed |= new


def add_sums(graph: fx.Graph, sums: Sums, exits: Sequence[fx.Node]) -> dict[fx.Node, fx.Node]:
    """Make the loaded part of some exits a value of its own, and each exit a sum with it.

    The loaded part is the difference between an exit and its computed part. The sum of the given
    values would be the same. But it would need a second addition for each of them, and the first
    block would differ from the others.

    Args:
        graph: changed in place.
        sums: its carried values.
        exits: the exits to change.

    Returns:
        Exit -> its loaded part.
    """
    needed = set(exits)
    for node in reversed(sums.carried):
        if node in needed:
            needed.update(n for n in node.all_input_nodes if sums.is_inside(n))
    loaded: dict[fx.Node, fx.Node] = {}
    computed: dict[fx.Node, fx.Node | None] = {}
    differences: dict[fx.Node, fx.Node] = {}
    totals: dict[fx.Node, fx.Node] = {}
    for node in sums.carried:
        if node not in needed:
            continue
        if sums.terms[node] == (node,):
            computed[node] = None
            continue
        after = node.next
        sources = _operands(node)
        values = {n: computed[n] if sums.is_inside(n) else totals.get(n, n) for n in sources}
        bases = {n: value for n, value in values.items() if value is not None}
        with graph.inserting_before(after):
            base = computed[node] = _apply(graph, node, bases, "base") if bases else None
            if node not in sums.exits:
                continue
            loaded[node] = _loaded(graph, node, sums, computed, differences)
            if base is not None:
                total = graph.call_function(torch.ops.aten.add.Tensor, (base, loaded[node]))
                _stands_for(total, node, "sum")
                totals[node] = total
    for node, total in totals.items():
        own = (node, computed[node])
        node.replace_all_uses_with(total, lambda user, own=own: user.args != own)
    return {node: loaded[node] for node in exits}


def _loaded(
    graph: fx.Graph,
    exit_: fx.Node,
    sums: Sums,
    computed: Mapping[fx.Node, fx.Node | None],
    differences: dict[fx.Node, fx.Node],
) -> fx.Node:
    """The loaded part of an exit: the difference after the last term, and the ops after it."""

    def only_inside(node: fx.Node) -> fx.Node | None:
        inside = [n for n in node.all_input_nodes if sums.is_inside(n)]
        if len(inside) != 1 or is_choice(node):
            return None
        return None if ir.is_call(node, "sub") and inside[0] is not node.args[0] else inside[0]

    path = list(chain(exit_, only_inside))
    last = path[-1]
    base = computed[last]
    if base is None:
        differences[last] = last
    elif last not in differences:
        made = graph.call_function(torch.ops.aten.sub.Tensor, (last, base))
        _stands_for(made, last, "delta")
        differences[last] = _narrowed(graph, made, base, sums.terms[last])
    made = differences[last]
    for node, source in reversed(list(itertools.pairwise(path))):
        made = _apply(graph, node, {source: made}, "delta")
    return made


def _narrowed(
    graph: fx.Graph, difference: fx.Node, base: fx.Node, terms: Sequence[fx.Node]
) -> fx.Node:
    """A difference, cast to the type of the terms if that needs less memory than the stream's."""
    whole, start = ir.tensor(difference), ir.tensor(base)
    added = [tensor.dtype for tensor in map(ir.tensor, terms) if tensor is not None]
    if whole is None or start is None or not added:
        return difference
    dtype = functools.reduce(torch.promote_types, added)
    if dtype.itemsize >= whole.dtype.itemsize or start.dtype != whole.dtype:
        return difference
    cast = graph.call_function(torch.ops.aten._to_copy.default, (difference,), {"dtype": dtype})
    _stands_for(cast, difference, "cast")
    ir.set_value(cast, whole.to(dtype))
    return cast


def _apply(
    graph: fx.Graph, node: fx.Node, values: Mapping[fx.Node, fx.Node], suffix: str
) -> fx.Node:
    """Apply an op to other values. A sum of one value is that value, and so is a choice of it."""
    if is_choice(node) and len(values) == 2 and len(set(values.values())) == 1:
        return next(iter(values.values()))
    if len(values) == 1:
        (value,) = values.values()
        if ir.is_call(node, "add", "sub"):
            return value
        if ir.is_call(node, *CASTS) and (before := _before_cast(value, node)) is not None:
            return before
    applied = graph.node_copy(node, lambda n: values.get(n, n))
    if is_choice(node) and len(values) < len(parts(node)):  # what is loaded is zero elsewhere
        one, other = parts(node)
        if one in values:
            applied.target, applied.args = _WHERE.ScalarOther, (node.args[0], values[one], 0.0)
        else:
            applied.target, applied.args = _WHERE.ScalarSelf, (node.args[0], 0.0, values[other])
    _stands_for(applied, node, suffix)
    return applied


def _before_cast(value: fx.Node, cast: fx.Node) -> fx.Node | None:
    """The value before a cast to a larger type, if another cast takes that back."""
    source = same(value) if _widens(value) else None
    source_type, type_ = (None if n is None else ir.tensor(n) for n in (source, cast))
    if source_type is None or type_ is None or source_type.dtype != type_.dtype:
        return None
    return source


def _stands_for(made: fx.Node, node: fx.Node, suffix: str) -> None:
    ir.copy_facts(made, node)
    made._rename(f"{node.name}_{suffix}")


def _is_sum(node: fx.Node, carried: Mapping[fx.Node, None]) -> bool:
    sources = node.all_input_nodes
    found = [n for n in sources if n in carried]
    if not found or node.op != "call_function" or ir.tensor(node) is None:
        return False
    if is_plain_add(node) or _is_fixed_choice(node):
        return all(ir.shape(n) == ir.shape(node) for n in found)
    if (source := _factored(node)) is not None:
        return found == [source]
    if ir.is_call(node, "cat"):
        listed = node.args[0]
        return isinstance(listed, (list, tuple)) and len(found) == len(listed)
    if len(sources) != 1:
        return False
    if ir.is_call(node, *CASTS):
        return all(is_number(n) for n in (node, *sources))
    return ir.is_call(node, *_VIEWS) and _num_elements(node) == _num_elements(sources[0])


def _num_elements(node: fx.Node) -> int | None:
    """Elements of a value. A part of a tensor does not count as a view: it keeps all memory."""
    tensor = ir.tensor(node)
    return None if tensor is None else tensor.numel()


def _operands(node: fx.Node) -> list[fx.Node]:
    """The operands that a carried value consists of: no masks and no factors."""
    source = _factored(node)
    return [source] if source is not None else parts(node) or node.all_input_nodes


def _factored(node: fx.Node) -> fx.Node | None:
    """What ``lerp`` scales, where its weight is the same at every step; None for other ops."""
    return scaled(node) if _is_fixed(node) else None


def _is_fixed_choice(node: fx.Node) -> bool:
    return is_choice(node) and _is_fixed(node)


def _is_fixed(node: fx.Node) -> bool:
    """Whether factor or mask are the same at every step, so that a loaded part may contain them."""
    return all(ir.binding(n) != Binding.STEP for n in node.all_input_nodes)


def _widens(node: fx.Node) -> bool:
    """Whether the node casts to a larger type."""
    source = same(node) if ir.is_call(node, *CASTS) else None
    return source is not None and ir.num_bytes(source) < ir.num_bytes(node)


def _is_widened(node: fx.Node, carried: Mapping[fx.Node, None], given: frozenset[fx.Node]) -> bool:
    """Whether a carried value ends in a cast to a larger type, which is better made of the sum."""
    if node in given or same(node) is None or any(user in carried for user in node.users):
        return False
    views = chain(node, lambda n: None if n in given or _widens(n) else same(n))
    return any(_widens(n) for n in views)
