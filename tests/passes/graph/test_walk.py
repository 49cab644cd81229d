"""Walks on hand-made graphs."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from helpers.graphs import traced
from pab_compile.passes.graph import ir, ops, walk
from pab_compile.passes.graph.groups import Groups


def branch(latents: torch.Tensor, w_out: torch.Tensor) -> tuple[torch.Tensor, ...]:
    low = (latents @ w_out).to(torch.bfloat16)
    left, right = low.float().reshape(-1, 12).unsqueeze(0).split(6, -1)
    return left.sin(), right.cos()


@pytest.fixture
def graph() -> fx.Graph:
    return traced(branch, w_out=(12, 12)).graph


def named(nodes: object) -> set[str]:
    return {ir.op_name(node) for node in nodes}  # type: ignore[attr-defined]


def find(graph: fx.Graph, name: str) -> fx.Node:
    return next(node for node in graph.nodes if ir.op_name(node) == name)


def test_a_walk_looks_through_the_given_ops_only(graph: fx.Graph) -> None:
    product, flat = find(graph, "matmul"), find(graph, "unsqueeze")
    last_cast = walk.look_through(flat, ops.VIEWS)
    assert ir.tensor(last_cast).dtype == torch.float32  # type: ignore[union-attr]
    assert walk.look_through(last_cast, ops.CASTS) is product
    assert walk.look_through(flat, ops.VIEWS | ops.CASTS) is product
    assert walk.look_through(flat, ops.CASTS) is flat


def test_what_feeds_a_node_and_what_it_feeds(graph: fx.Graph) -> None:
    product = find(graph, "matmul")
    assert walk.feeding([product]) == set(ir.placeholders(graph))
    assert walk.fed_by([product]) == set(graph.nodes) - {product, *ir.placeholders(graph)}
    assert walk.fed_by(graph.nodes).isdisjoint(ir.placeholders(graph))
    assert find(graph, "output") not in walk.feeding(graph.nodes)


def test_what_feeds_several_groups_is_found_in_one_walk(graph: fx.Graph) -> None:
    nodes = list(graph.nodes)
    groups = [[node] for node in nodes] + [[find(graph, "cos"), find(graph, "split")], []]
    found = walk.Feeding(graph, groups)
    for number, group in enumerate(groups):
        assert {node for node in nodes if node in found.of(number)} == walk.feeding(group), group


def test_a_walk_can_stay_within_some_nodes(graph: fx.Graph) -> None:
    calls = set(ir.calls(graph))
    found = walk.feeding([find(graph, "sin")], within=calls)
    assert found == calls & walk.feeding([find(graph, "sin")])


def test_the_edges_of_a_group(graph: fx.Graph) -> None:
    split = find(graph, "split")
    group = [split, *walk.picks(split), find(graph, "cos")]
    assert named(walk.operands(group)) == {"unsqueeze"}
    assert walk.results(group) == [walk.picks(split)[0], find(graph, "cos")]
    assert [pick.args[1] for pick in walk.picks(split)] == [0, 1]


def test_order(graph: fx.Graph) -> None:
    nodes = list(graph.nodes)
    assert walk.in_order(nodes[::-2]) == nodes[(len(nodes) - 1) % 2 :: 2]
    assert walk.in_order([]) == []
    assert list(walk.positions(graph).items()) == [(n, i) for i, n in enumerate(nodes)]


def test_the_first_item_leads_its_group() -> None:
    groups = Groups("abcde")
    groups.merge("db")
    groups.merge("de")
    groups.merge([])
    assert groups.leaders() == ["a", "b", "c"]
    assert groups.members("b") == ["b", "d", "e"]
    assert groups.leader("e") == "b"
