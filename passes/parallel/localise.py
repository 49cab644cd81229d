"""Localise: the graph of one device becomes the graph of one rank (apply).

Every op stays. Sizes that are written into views and slices become local. Replicated operands of
sharded ops are sliced. Detours, entries and exits become the ops of ``passes.parallel.emit``.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from pab_compile.passes.errors import InvariantError
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.ops import is_communication
from pab_compile.passes.graph.tracing import module_of

from .detour import Crossing, Detour
from .emit import Emitter, Exchange
from .emit_ring import emit_ring
from .layout import Layout
from .local_call import local_call
from .placement import describe
from .ring import PassedOn
from .shard import Ranks, Shard
from .verdict import Verdict


@dataclass(frozen=True, eq=False)
class Localised:
    """The graph of one rank.

    Attributes:
        graph_module: same inputs and outputs as the graph of one device.
        nodes: node of that graph -> the node in its place, with the local part if it is sharded.
        exchanges: detour -> the collectives that re-shard for it.
        purposes: collective -> its purpose.
        gathers: value that is gathered outside of detours -> the collectives that gather it.
    """

    graph_module: fx.GraphModule
    nodes: dict[fx.Node, fx.Node]
    exchanges: dict[Detour, tuple[fx.Node, ...]]
    purposes: dict[fx.Node, Exchange | PassedOn]
    gathers: dict[fx.Node, tuple[fx.Node, ...]]


def localise(graph_module: fx.GraphModule, layout: Layout, ranks: Ranks) -> Localised:
    """Make the graph of one rank from the graph of one device and a layout.

    Args:
        graph_module: a captured graph; not modified.
        layout: how its tensors are sharded.
        ranks: the ranks, and which of them the graph is for.
    """
    assert ranks.size == layout.num_ranks
    builder = _Builder(layout, ranks)
    for node in graph_module.graph.nodes:
        builder.add(node)
    root = torch.nn.Module()
    for name, buffer in graph_module.named_buffers(recurse=False):
        root.register_buffer(name, buffer, persistent=False)
    for name, inner in graph_module.named_children():
        root.add_module(name, inner)
    graph = builder.graph
    _remove_dead(graph)
    graph.lint()
    found = module_of(root, graph)
    ir.set_mutated_inputs(found, ir.mutated_inputs(graph_module))
    return Localised(found, builder.main, builder.exchanges, builder.purposes, builder.gathers)


class _Builder:
    def __init__(self, layout: Layout, ranks: Ranks) -> None:
        self.graph = fx.Graph()
        self.main: dict[fx.Node, fx.Node] = {}
        self._layout = layout
        self._ranks = ranks
        self._emitter = Emitter(self.graph, ranks)
        self._taken: dict[tuple[fx.Node, Shard], fx.Node] = {}
        self._detour_of = {n: detour for detour in layout.detours for n in detour.verdicts}
        self._inside: dict[Detour, dict[fx.Node, fx.Node]] = {d: {} for d in layout.detours}
        self.exchanges: dict[Detour, tuple[fx.Node, ...]] = dict.fromkeys(layout.detours, ())
        self.purposes = self._emitter.made
        self.gathers: dict[fx.Node, tuple[fx.Node, ...]] = {}
        self._leaving = {c.node: c for detour in layout.detours for c in detour.leaving}

    def add(self, node: fx.Node) -> None:
        """Append the nodes in the place of a node of the full graph."""
        if node.op == "output":
            self.graph.output(fx.map_arg(node.args[0], self._full))
            ir.copy_facts(ir.output_node(self.graph), node)
        elif (detour := self._detour_of.get(node)) is not None:
            add = self._add_inside if detour.ring is None else self._add_ring
            add(node, detour)
        elif node in self._layout.gathered or not self._is_local(node):
            self._add_replicated(node)
        elif ir.is_getitem(node):
            self.main[node] = self._pick(node, self.main)
        else:
            verdict = self._layout.verdicts[node]
            shards = {
                n: self._layout.shards[n] for n in node.all_input_nodes if n in self._layout.shards
            }
            operands = {n: self._operand(n, verdict) for n in node.all_input_nodes}
            self.main[node] = self._local(node, verdict, shards, operands)

    def _is_local(self, node: fx.Node) -> bool:
        if ir.is_getitem(node):
            return node.args[0] in self._layout.verdicts
        return node in self._layout.verdicts

    def _add_replicated(self, node: fx.Node) -> None:
        copied = self.graph.node_copy(node, self._full)
        ir.copy_facts(copied, node)
        if node in self._layout.entries:
            copied = self._emitter.take(copied, self._layout.shards[node])
        self.main[node] = copied

    def _full(self, node: fx.Node) -> fx.Node:
        """A value as every rank has it, gathered where it is sharded."""
        shard = self._layout.shards.get(node)
        if shard is None:
            return self.main[node]
        key = (node, shard)
        if key not in self._taken:
            known = len(self.purposes)
            self._taken[key] = self._emitter.gather(self.main[node], shard, node)
            self.gathers[node] = self._emitter.made_since(known)
        return self._taken[key]

    def _operand(self, node: fx.Node, verdict: Verdict) -> fx.Node:
        """An operand of a sharded op: the value itself, or this rank's part of it."""
        shard = verdict.needs.get(node)
        if shard is None:
            return self.main[node]
        key = (node, shard)
        if key not in self._taken:
            self._taken[key] = self._emitter.take(self.main[node], shard)
        return self._taken[key]

    def _add_inside(self, node: fx.Node, detour: Detour) -> None:
        """Append an op of a detour, on values that are sharded along the other axis."""
        local, verdict = self._inside[detour], detour.verdicts[node]
        entering = {crossing.node: crossing for crossing in detour.entering}
        for source in node.all_input_nodes:
            crossing = entering.get(source)
            if crossing is not None and source not in local:
                local[source] = self._switch(self.main[source], crossing, detour)
        if ir.is_getitem(node):
            local[node] = self._pick(node, local)
        else:
            shards = self._shards_inside(node, detour)
            operands = {
                n: local[n] if n in local else self._operand(n, verdict)
                for n in node.all_input_nodes
            }
            local[node] = self._local(node, verdict, shards, operands)
        if (crossing := self._leaving.get(node)) is not None:
            self.main[node] = self._switch(local[node], crossing, detour)
        elif node in detour.kept:
            self.main[node] = local[node]

    def _add_ring(self, node: fx.Node, detour: Detour) -> None:
        """Append an attention that runs in rings."""
        assert detour.ring is not None
        known = len(self.purposes)
        shards = self._layout.shards
        self.main[node] = emit_ring(self._emitter, node, detour.ring, shards, self.main)
        self.exchanges[detour] += self._emitter.made_since(known)

    def _pick(self, node: fx.Node, local: Mapping[fx.Node, fx.Node]) -> fx.Node:
        """One output of an op with several."""
        source, index = node.args
        picked = (local[source], index)  # type: ignore[index]
        return self._emitter.stand_in(node, operator.getitem, picked, {})

    def _switch(self, x: fx.Node, crossing: Crossing, detour: Detour) -> fx.Node:
        known = len(self.purposes)
        if crossing.adds_up:
            switched = self._emitter.add_up(x, crossing.node)
        elif crossing.target is None:
            switched = self._emitter.gather(x, crossing.source, crossing.node)
        else:
            switched = self._emitter.switch(x, crossing.source, crossing.target, crossing.node)
        self.exchanges[detour] += self._emitter.made_since(known)
        return switched

    def _shards_inside(self, node: fx.Node, detour: Detour) -> dict[fx.Node, Shard]:
        found = {c.node: c.target for c in detour.entering if c.target is not None}
        if detour.kept:
            entering = [c.node for c in detour.entering]
            shards = self._layout.shards
            found |= {
                n: shards[n] for n in node.all_input_nodes if n in shards and n not in entering
            }
        for source in node.all_input_nodes:
            if source in detour.verdicts and ir.tensor(source) is not None:
                shard = detour.verdicts[source].outputs[0]
                if shard is not None:
                    found[source] = shard
        return found

    def _local(
        self,
        node: fx.Node,
        verdict: Verdict,
        shards: dict[fx.Node, Shard],
        operands: dict[fx.Node, fx.Node],
    ) -> fx.Node:
        """A sharded op with local operands and local sizes."""
        target, args, kwargs = local_call(node, verdict, shards, self._ranks)
        args, kwargs = fx.map_arg((args, kwargs), operands.__getitem__)
        value = None
        if isinstance(target, torch._ops.HigherOrderOperator):  # it takes graphs, so it is not run
            value = _parts_of_value(node, verdict, self._ranks)
        call = self._emitter.stand_in(node, target, args, kwargs, value)
        values = ir.value(call)
        several = isinstance(values, (list, tuple))
        full = ir.value(node) if several else [ir.value(node)]
        for got, whole, shard in zip(
            values if several else [values], full, verdict.outputs, strict=True
        ):
            if not isinstance(whole, torch.Tensor):
                continue
            expected = tuple(whole.shape)
            if shard is not None:
                expected = shard.local_shape(expected, self._ranks.count(shard.size))
            expected = tuple(map(int, expected))  # open sizes are compared at the given ones alone
            if tuple(got.shape) != expected:
                raise InvariantError(
                    f"{describe(node)} yields {tuple(got.shape)} on rank {self._ranks.rank}, "
                    f"not {expected}"
                )
        return call


def _parts_of_value(node: fx.Node, verdict: Verdict, ranks: Ranks) -> tuple[torch.Tensor, ...]:
    """The fake values of a rank's parts of some outputs."""
    found = []
    for whole, shard in zip(ir.tensors(node), verdict.outputs, strict=True):
        if shard is not None:
            whole = whole.narrow(shard.dim, 0, shard.local(ranks.count(shard.size))).clone()
        found.append(whole)
    return tuple(found)


def _remove_dead(graph: fx.Graph) -> None:
    """Remove unused nodes, also collectives and their waits: all ranks remove the same ones."""
    for node in reversed(list(graph.nodes)):
        is_needed = bool(node.users) or (ir.must_stay(node) and not is_communication(node))
        if node.op == "call_function" and not is_needed:
            graph.erase_node(node)
