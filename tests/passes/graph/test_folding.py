"""Folding: what is mapped over constants is computed once, anything else is left alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from helpers.captured import values
from helpers.mapped import dynamo_graph, num_maps, outer
from pab_compile.passes.graph.folding import fold_mapped_constants

Function = Callable[[torch.Tensor], torch.Tensor]


def upon_one_another(x: torch.Tensor) -> torch.Tensor:
    mask = outer(torch.arange(3), torch.arange(4)).float()
    return x * torch.vmap(lambda row: row * 2)(mask)


def test_a_mask_of_sizes_alone_becomes_a_buffer_with_its_value() -> None:
    graph_module = dynamo_graph(lambda x: x * outer(torch.arange(3), torch.arange(4)))
    assert num_maps(graph_module) == 2
    assert fold_mapped_constants(graph_module) == 1
    assert num_maps(graph_module) == 0
    (mask,) = graph_module.buffers()
    assert torch.equal(mask, (torch.arange(3)[:, None] - torch.arange(4)).abs() < 2)
    x = values(3, 4, seed=1)
    assert torch.equal(graph_module(x)[0], x * mask)
    assert fold_mapped_constants(graph_module) == 0


def test_maps_upon_maps_are_folded_one_after_another() -> None:
    graph_module = dynamo_graph(upon_one_another)
    assert fold_mapped_constants(graph_module) == 2
    assert num_maps(graph_module) == 0
    x = values(3, 4, seed=1)
    assert torch.equal(graph_module(x)[0], upon_one_another(x))


def of_an_input(x: torch.Tensor) -> torch.Tensor:
    return x * torch.vmap(lambda row: row.sum())(x)[:, None]


def of_noise(x: torch.Tensor) -> torch.Tensor:
    return x * outer(torch.rand(3), torch.arange(4))


def of_what_is_written_to(x: torch.Tensor) -> torch.Tensor:
    rows = torch.zeros(3)
    rows[1:] = x[1:, 0]
    return x * outer(rows, torch.arange(4))


def of_what_is_added_to_in_place(x: torch.Tensor) -> torch.Tensor:
    rows = torch.zeros(3)
    later = rows[1:]
    later += x[1:, 0]
    return x * outer(rows, torch.arange(4))


@pytest.mark.parametrize(
    "function", [of_an_input, of_noise, of_what_is_written_to, of_what_is_added_to_in_place]
)
def test_what_may_change_from_call_to_call_is_left_alone(function: Function) -> None:
    graph_module = dynamo_graph(function)
    before = num_maps(graph_module)
    assert before
    assert fold_mapped_constants(graph_module) == 0
    assert num_maps(graph_module) == before
