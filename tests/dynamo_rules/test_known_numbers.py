"""Dynamo reads the numbers of tensors that were made of numbers, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from helpers.collecting import collecting
from pab_compile.dynamo_rules import state_sizes


def compiled(function: Callable[..., Any], is_marked: bool = True) -> tuple[Any, list[Any]]:
    """A compiled function, and the graphs that its backend gets."""
    backend, graphs = collecting(is_marked)
    torch._dynamo.reset()
    return torch.compile(function, backend=backend, dynamic=False), graphs


def of_sizes(x: torch.Tensor) -> torch.Tensor:
    for first, second in torch.stack([torch.tensor(x.shape)]).tolist():
        x = x.reshape(second, first) * first
    return x[: torch.tensor([2, 1])[0]]


def of_counts(x: torch.Tensor) -> torch.Tensor:
    counts = torch.full((3,), x.shape[0], dtype=torch.long)
    first, second, third = (counts * torch.arange(3)).tolist()
    return x.sum() * first + x.mean() * second + x.max() * third


def written_after(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    counts = torch.zeros(2, dtype=torch.long)
    counts[1:] += n
    return x * counts.tolist()[1]


def written(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    grid = torch.tensor([1, 2])
    alias = grid[:1]
    alias.copy_(n)
    return x * grid.tolist()[0]


def given(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    return x * n.item()


def test_numbers_of_sizes_do_not_break_the_graph() -> None:
    x = torch.randn(3, 4)
    function, graphs = compiled(of_sizes)
    assert torch.equal(function(x), of_sizes(x))
    assert len(graphs) == 1
    other = torch.randn(5, 2)
    assert torch.equal(function(other), of_sizes(other))


def test_numbers_that_a_function_makes_of_numbers_do_not_break_the_graph() -> None:
    function, graphs = compiled(of_counts)
    for size in (3, 4):
        x = torch.randn(size, 4)
        assert torch.equal(function(x), of_counts(x))
    assert len(graphs) == 2


def test_other_backends_see_no_difference() -> None:
    compiled(of_sizes)
    function, graphs = compiled(of_sizes, is_marked=False)
    function(torch.randn(3, 4))
    assert len(graphs) > 1


@pytest.mark.parametrize("function", [written, written_after, given])
def test_numbers_that_are_written_or_given_are_not_known(function: Callable[..., Any]) -> None:
    ours, _ = compiled(function)
    x = torch.ones(2)
    for value in (3, 7):
        assert torch.equal(ours(x, torch.tensor([value])), x * value)


def test_reads_whose_values_dynamo_used_are_gone() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_method("item", (x,))
    used = graph.call_method("item", (x,))
    graph.output(graph.call_method("mul", (x, used)))
    graph_module = fx.GraphModule({}, graph)
    state_sizes(graph_module)
    assert [node.target for node in graph.nodes if node.op == "call_method"] == ["item", "mul"]
    assert graph_module(torch.tensor(3)) == 9
