"""Passes are linear in nodes: what they visit is counted at three depths, not timed."""

from __future__ import annotations

import torch
from torch import fx

from benchmarks.growth import costs, exponent, visits
from pab_compile.passes.graph import ir


def test_no_pass_visits_more_per_node_in_a_deeper_model() -> None:
    nodes, counted = zip(*(costs(depth, visits) for depth in (2, 4, 8)), strict=True)
    first, second, third = counted
    more = nodes[2] - nodes[1], nodes[1] - nodes[0]
    assert {"capture", "axes", "sites", "parallel", "pieces"} <= first.keys()
    for name in first:
        grown = third[name] - second[name], second[name] - first[name]
        assert grown[0] / more[0] < 1.1 * grown[1] / more[1], name


def test_a_walk_through_the_graph_per_node_is_seen() -> None:
    def run(graph: fx.Graph) -> int:
        return sum(other is node for node in ir.calls(graph) for other in graph.nodes)

    found = []
    sizes = (10, 20, 40)
    for size in sizes:
        graph = fx.Graph()
        node = graph.placeholder("x")
        for _ in range(size):
            node = graph.call_function(torch.relu, (node,))
        found.append(visits(lambda graph=graph: run(graph))[1])
    assert exponent(sizes, found) > 1.7  # 1 is linear
