"""Sums: values of a graph that consist of a computed part and a loaded part.

The *given* values are what sites hand on. A value is *carried* if only sums, concatenations, views
and casts lie between it and the given values. On a step that reuses them, it is the sum of a
computed part and a loaded part. Where another op reads it, the sum has to be added up. The *end* is
the first value from which all that the op reads can be computed. What comes after an end is
computed from it.

The *start* of an end is its computed part: in ``%x2 = add(add(%x, %a), %m)`` with the given values
``%a`` and ``%m``, the end ``%x2`` has the start ``%x``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.open_sizes import compute_value
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
        ends: the carried values that are added up, each with the first node that needs the sum.
        terms: carried value -> the given values in it, up to the ends before it.
        live: the nodes that are computed or loaded on a step that reuses the given values.
    """

    carried: tuple[fx.Node, ...]
    ends: Mapping[fx.Node, fx.Node]
    terms: Mapping[fx.Node, tuple[fx.Node, ...]]
    live: frozenset[fx.Node]

    def is_inside(self, node: fx.Node) -> bool:
        """Whether a value has a loaded part and is not added up."""
        return bool(self.terms.get(node)) and node not in self.ends


def live_nodes(
    graph: fx.Graph, given: frozenset[fx.Node], starts: Mapping[fx.Node, fx.Node] | None = None
) -> frozenset[fx.Node]:
    """The nodes that must run if some values are given, and the given values that they read.

    Args:
        graph: any graph.
        given: values that need not be computed.
        starts: given value -> what is needed to load it.
    """
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        # A collective is no root: if it re-shards for a site, it belongs to the site.
        is_root = node.op == "output" or (node.op == "call_function" and ir.has_effect(node))
        if is_root or any(user in live and user not in given for user in node.users):
            live.add(node)
        if node in live and starts and node in starts:
            live.add(starts[node])
    return frozenset(live)


def may_carry(node: fx.Node) -> bool:
    """Whether the op can be applied to the parts of a sum one by one."""
    is_sum = ir.is_call(node, "add", "sub") or is_choice(node) or scaled(node) is not None
    return is_sum or ir.is_call(node, "cat", *_VIEWS, *CASTS)


def find_sums(graph: fx.Graph, given: frozenset[fx.Node]) -> Sums:
    """Find the carried values of a graph, the ends among them, and their terms."""
    live = live_nodes(graph, given)
    mixed: set[fx.Node] = set()
    while True:  # a concatenation of carried and other values turns out to be no carried value
        carried: dict[fx.Node, None] = {}
        for node in graph.nodes:
            if node in live and (node in given or (node not in mixed and _is_sum(node, carried))):
                carried[node] = None
        ends = _ends(carried, given, live)
        terms: dict[fx.Node, tuple[fx.Node, ...]] = {}
        bare: set[fx.Node] = set()  # without a computed part
        new: set[fx.Node] = set()
        for node in carried:
            if node in given:
                terms[node] = (node,)
                bare.add(node)
                continue
            inside = [n for n in node.all_input_nodes if n in carried and n not in ends]
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
            return Sums(tuple(carried), ends, terms, live)
        mixed |= new


def add_starts(
    graph: fx.Graph, sums: Sums, ends: Sequence[fx.Node]
) -> dict[fx.Node, fx.Node | None]:
    """Give some ends their starts. A start that no node computes yet becomes a node of its own.

    Args:
        graph: changed in place. Nodes are only added.
        sums: its carried values.
        ends: some ends.

    Returns:
        End -> its start; None if it has no computed part.
    """
    needed = set(ends)
    for node in reversed(sums.carried):
        if node in needed:
            needed.update(n for n in node.all_input_nodes if sums.is_inside(n))
    computed: dict[fx.Node, fx.Node | None] = {}
    for node in sums.carried:
        if node not in needed:
            continue
        if sums.terms[node] == (node,):
            computed[node] = None
            continue
        values = {n: computed[n] if sums.is_inside(n) else n for n in _operands(node)}
        starts = {n: value for n, value in values.items() if value is not None}
        with graph.inserting_before(node):
            computed[node] = _apply(graph, node, starts) if starts else None
    return {end: computed[end] for end in ends}


def _ends(
    carried: Mapping[fx.Node, None], given: frozenset[fx.Node], live: frozenset[fx.Node]
) -> dict[fx.Node, fx.Node]:
    """The ends among the carried values, each with the first node that needs the sum."""

    def only_source(node: fx.Node) -> fx.Node | None:
        sources = [n for n in node.all_input_nodes if n in carried]
        if node in given or len(sources) != 1:
            return None
        return None if _narrows(node) else sources[0]

    readers: dict[fx.Node, fx.Node] = {}
    for node in carried:
        reader = next((u for u in list(node.users) if u in live and u not in carried), None)
        if reader is not None:
            *_, end = chain(node, only_source)
            readers.setdefault(end, reader)
    return {node: readers[node] for node in carried if node in readers}


def _apply(graph: fx.Graph, node: fx.Node, values: Mapping[fx.Node, fx.Node]) -> fx.Node:
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
    ir.copy_facts(applied, node)
    compute_value(applied)  # its type or strides may differ
    applied._rename(f"{node.name}_start")
    return applied


def _before_cast(value: fx.Node, cast: fx.Node) -> fx.Node | None:
    """The value before a cast to a larger type, if another cast takes that back."""
    source = same(value) if _widens(value) else None
    source_type, type_ = (None if n is None else ir.tensor(n) for n in (source, cast))
    if source_type is None or type_ is None or source_type.dtype != type_.dtype:
        return None
    return source


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
    return None if ir.tensor(node) is None else ir.num_elements(node)


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


def _narrows(node: fx.Node) -> bool:
    """Whether the node casts to a smaller type. The sum is kept after it, as the stream is."""
    source = same(node) if ir.is_call(node, *CASTS) else None
    return source is not None and ir.num_bytes(source) > ir.num_bytes(node)
