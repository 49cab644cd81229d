"""Dynamo reads a small table of whole numbers of the caller, and compiles other numbers anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from helpers.collecting import collecting


def compiled(
    function: Callable[..., Any], is_marked: bool = True, dynamic: bool | None = False
) -> tuple[Any, list[Any]]:
    """A compiled function, and the graphs that its backend gets."""
    backend, graphs = collecting(is_marked)
    torch._dynamo.reset()
    return torch.compile(function, backend=backend, dynamic=dynamic), graphs


def by_rows(x: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
    for frames, height in grids.tolist():
        x = x.reshape(height, frames) * (1 + grids[0][1].item())
    return x


def written(x: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
    grids[0].add_(1)
    return x * grids.tolist()[0][0]


def computed(x: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
    return x * grids.sum().item()


def doubled(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    x = x * 2
    numbers.tolist()
    return x + numbers.sum()


def test_a_table_of_the_caller_does_not_break_the_graph() -> None:
    function, graphs = compiled(by_rows)
    x = torch.randn(3, 4)
    for grid in ([[3, 4]], [[2, 6]], [[3, 4]]):
        assert torch.equal(function(x, torch.tensor(grid)), by_rows(x, torch.tensor(grid)))
    assert len(graphs) == 2


def test_it_may_be_made_in_inference_mode() -> None:
    function, graphs = compiled(by_rows)
    with torch.inference_mode():
        x, grids = torch.randn(3, 4), torch.tensor([[3, 4]])
        assert torch.equal(function(x, grids), by_rows(x, grids))
    assert len(graphs) == 1


def test_other_backends_see_no_difference() -> None:
    compiled(by_rows)
    function, graphs = compiled(doubled, is_marked=False)
    function(torch.randn(3, 4), torch.tensor([[3, 4]]))
    assert len(graphs) == 2


@pytest.mark.parametrize("function", [written, computed])
def test_what_is_written_to_or_computed_is_not_read(function: Callable[..., Any]) -> None:
    ours, graphs = compiled(function)
    x = torch.ones(2)
    for value in (3, 7, 9):
        table = torch.tensor([[value, 1]])
        assert torch.equal(ours(x, table.clone()), function(x, table.clone()))
    assert len(graphs) > 1


@pytest.mark.parametrize("table", [torch.tensor([3, 1]), torch.tensor([[3.0, 1.0]])])
def test_a_row_alone_and_fractions_are_not_read(table: torch.Tensor) -> None:
    ours, graphs = compiled(doubled)
    assert torch.equal(ours(torch.ones(2), table), doubled(torch.ones(2), table))
    assert len(graphs) == 2


def test_a_table_that_differs_from_call_to_call_is_left_to_dynamo() -> None:
    def own(x: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        return (x * grids.tolist()[0][0]).cos()

    function, graphs = compiled(own, dynamic=None)
    x = torch.ones(2)
    for value in range(2, 9):
        table = torch.tensor([[value, 1]])
        assert torch.equal(function(x, table), own(x, table))
    assert len(graphs) < 7
