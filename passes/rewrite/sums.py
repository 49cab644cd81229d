"""Sums: values of a graph that consist of a computed part and a loaded part.

The *given* values are what sites cache. A value is *carried* if only additions, concatenations,
views and casts lie between it and the given values. On a step that reuses them, it is the sum of a
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
from pab_compile.passes.sites.adds import is_add, is_plain_add

_VIEWS = VIEWS | PARTS | COPIES


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
    return is_add(node) or ir.is_call(node, "cat", *_VIEWS, *CASTS)


def find_sums(graph: fx.Graph, given: frozenset[fx.Node]) -> Sums:
    """Find the carried values of a graph, the exits among them, and their terms."""
    live = live_nodes(graph, given)
    mixed: set[fx.Node] = set()
    while True:  # a concatenation of carried and other values turns out to be no carried value
        carried: dict[fx.Node, None] = {}
        for node in graph.nodes:
            if node in live and (node in given or (node not in mixed and _is_sum(node, carried))):
                carried[node] = None
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
            if len(loaded) == len(node.all_input_nodes) and bare.issuperset(loaded):
                bare.add(node)
            elif loaded and ir.is_call(node, "cat"):
                is_whole = len(loaded) == len(node.all_input_nodes) and bare.isdisjoint(loaded)
                new |= set() if is_whole else {node}
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
        sources = node.all_input_nodes
        parts = {n: computed[n] if sums.is_inside(n) else totals.get(n, n) for n in sources}
        bases = {n: part for n, part in parts.items() if part is not None}
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
        return inside[0] if len(inside) == 1 else None

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
    """Apply an op to other values. An addition of one value is that value."""
    if is_add(node) and len(values) == 1:
        (value,) = values.values()
        return value
    applied = graph.node_copy(node, values.__getitem__)
    _stands_for(applied, node, suffix)
    return applied


def _stands_for(made: fx.Node, node: fx.Node, suffix: str) -> None:
    ir.copy_facts(made, node)
    made._rename(f"{node.name}_{suffix}")


def _is_sum(node: fx.Node, carried: Mapping[fx.Node, None]) -> bool:
    sources = node.all_input_nodes
    found = [n for n in sources if n in carried]
    if not found or node.op != "call_function" or ir.tensor(node) is None:
        return False
    if is_add(node):
        return is_plain_add(node) and all(ir.shape(n) == ir.shape(node) for n in found)
    if ir.is_call(node, "cat"):
        listed = node.args[0]
        return isinstance(listed, (list, tuple)) and len(found) == len(listed)
    if len(sources) != 1:
        return False
    if ir.is_call(node, *CASTS):
        return all(_is_real(n) for n in (node, *sources))
    return ir.is_call(node, *_VIEWS) and _num_elements(node) == _num_elements(sources[0])


def _num_elements(node: fx.Node) -> int | None:
    """Elements of a value. A part of a tensor does not count as a view: it keeps all memory."""
    tensor = ir.tensor(node)
    return None if tensor is None else tensor.numel()


def _is_real(node: fx.Node) -> bool:
    tensor = ir.tensor(node)
    return tensor is not None and tensor.is_floating_point()
