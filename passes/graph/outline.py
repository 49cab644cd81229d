"""Outlining: moves groups of nodes into submodules that the outer graph calls."""

from __future__ import annotations

import heapq
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter

import torch
from torch import fx

from . import ir
from .tracing import module_of
from .walk import operands, results


@dataclass(frozen=True, eq=False)
class Outlined:
    """A group of nodes as a graph module: ``inputs`` -> a tuple of the values of ``outputs``.

    The call of the submodule also gets ``others``, which the graph module does not read.
    """

    graph_module: fx.GraphModule
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    others: tuple[fx.Node, ...] = ()


def extract(
    root: torch.nn.Module, nodes: Sequence[fx.Node], outputs: Sequence[fx.Node]
) -> Outlined:
    """Copy nodes (in graph order) into a graph module that returns a tuple of ``outputs``."""
    read = operands(nodes)
    inputs = [node for node in read if not ir.is_subgraph(node)]
    subgraphs = [node for node in read if ir.is_subgraph(node)]  # copied: they have no value
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = dict(node.meta)
    for node in (*subgraphs, *nodes):
        copies[node] = graph.node_copy(node, copies.__getitem__)
        copies[node].meta = dict(node.meta)
    graph.output(tuple(copies[node] for node in outputs))
    return Outlined(module_of(root, graph), tuple(inputs), tuple(outputs))


def copy_graph(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A copy that can be rewritten without touching the original."""
    return copy_with_nodes(graph_module)[0]


def copy_with_nodes(
    graph_module: fx.GraphModule,
) -> tuple[fx.GraphModule, dict[fx.Node, fx.Node]]:
    """A copy that can be rewritten, and for each original node its copy."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(graph_module.graph, copies))
    return module_of(graph_module, graph), copies


def outline(
    graph_module: fx.GraphModule,
    groups: Mapping[fx.Node, str],
    wrap: Callable[[str, Outlined], torch.nn.Module],
    others: Mapping[str, Sequence[fx.Node]] | None = None,
) -> fx.GraphModule:
    """Rebuild a graph with every group of nodes replaced by one ``call_module``.

    Args:
        graph_module: the graph; not modified.
        groups: node -> name of its group. Groups must be convex (no path out of a group and back).
        wrap: makes the submodule of a group from its name and extracted graph.
        others: name of a group -> nodes that its call also gets, behind the group's own inputs.

    Returns:
        A new graph module. Group ``g`` is the submodule ``g``, which returns a tuple; each of its
        values is picked by a ``getitem`` that carries the name and facts of the node it stands for.
    """
    members: dict[str, list[fx.Node]] = {}
    for node in graph_module.graph.nodes:
        if node in groups:
            members.setdefault(groups[node], []).append(node)
    root = torch.nn.Module()
    for name, held in graph_module.named_children():
        root.add_module(name, held)
    for name, buffer in graph_module.named_buffers(recurse=False):
        root.register_buffer(name, buffer, persistent=False)

    new_graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    others = others or {}
    for unit in _ordered_units(graph_module.graph, groups, others):
        if isinstance(unit, fx.Node):
            copies[unit] = new_graph.node_copy(unit, copies.__getitem__)
            copies[unit].meta = dict(unit.meta)
            continue
        nodes = members[unit]
        outputs = results(nodes)
        outlined = extract(graph_module, nodes, outputs)
        also = tuple(n for n in others.get(unit, ()) if n not in outlined.inputs)
        outlined = replace(outlined, others=also)
        root.add_module(unit, wrap(unit, outlined))
        call = new_graph.call_module(unit, tuple(copies[n] for n in (*outlined.inputs, *also)))
        ir.set_value(call, tuple(ir.value(n) for n in outputs))
        for index, node in enumerate(outputs):
            picked = new_graph.create_node(
                "call_function", operator.getitem, (call, index), name=node.name
            )
            picked.meta = dict(node.meta)
            copies[node] = picked
    for node in new_graph.find_nodes(op="get_attr"):
        if ir.is_subgraph(node) and not node.users:
            new_graph.erase_node(node)
    new_graph.lint()
    return module_of(root, new_graph)


def _ordered_units(
    graph: fx.Graph, groups: Mapping[fx.Node, str], others: Mapping[str, Sequence[fx.Node]]
) -> list[fx.Node | str]:
    """Single nodes and names of groups: in an order of data flow, otherwise in graph order."""
    position: dict[fx.Node | str, int] = {}
    sorter: TopologicalSorter[fx.Node | str] = TopologicalSorter()
    for index, node in enumerate(graph.nodes):
        unit = groups.get(node, node)
        position[unit] = index
        also = others.get(unit, ()) if isinstance(unit, str) else ()
        read = (*node.all_input_nodes, *also)
        sources = {groups.get(n, n) for n in read} - {unit}
        sorter.add(unit, *sources)
    sorter.prepare()
    ordered: list[fx.Node | str] = []
    ready: list[tuple[int, fx.Node | str]] = []
    while sorter.is_active():
        for unit in sorter.get_ready():
            heapq.heappush(ready, (position[unit], unit))
        ordered.append(heapq.heappop(ready)[1])
        sorter.done(ordered[-1])
    return ordered
