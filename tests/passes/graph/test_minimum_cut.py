"""Cuts of least size between two parts of a graph."""

from __future__ import annotations

from unittest import mock

import networkx as nx
from torch import fx

from pab_compile.passes.graph.minimum_cut import Cut, minimum_cut


def diamond() -> tuple[list[fx.Node], list[tuple[fx.Node, fx.Node]]]:
    """``x -> (left, right) -> y -> z``."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    left, right = (graph.call_function(abs, (x,)) for _ in range(2))
    y = graph.call_function(max, (left, right))
    z = graph.call_function(abs, (y,))
    nodes = [x, left, right, y, z]
    return nodes, [(source, node) for node in nodes for source in node.all_input_nodes]


def cut(*sizes: int | None) -> Cut | None:
    nodes, edges = diamond()
    return minimum_cut(dict(zip(nodes, sizes, strict=True)), edges, nodes[:1], nodes[-1:])


def places(found: Cut | None) -> tuple[str, ...]:
    return () if found is None else tuple(node.name for node in found.nodes)


def test_the_smallest_nodes_that_every_path_meets() -> None:
    found = cut(9, 2, 3, 8, 7)
    assert places(found) == ("abs_1", "abs_2")
    assert found is not None and found.size == 5
    assert {node.name for node in found.after} == {"max_1", "abs_3"}


def test_of_equal_cuts_the_last() -> None:
    assert places(cut(5, 2, 3, 5, 6)) == ("max_1",)


def test_a_node_without_a_size_is_not_cut() -> None:
    assert places(cut(9, None, 1, None, 7)) == ("abs_3",)
    assert cut(None, None, 1, None, None) is None


def test_equal_blocks_share_a_cut() -> None:
    with mock.patch.object(nx, "minimum_cut", wraps=nx.minimum_cut) as counted:
        found = [cut(19, 12, 13, 16, 17) for _ in range(3)]
    assert counted.call_count == 1
    assert {places(each) for each in found} == {("max_1",)}
    assert len({each.nodes for each in found if each is not None}) == 3  # each has its own nodes
