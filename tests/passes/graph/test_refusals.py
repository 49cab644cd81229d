"""Refusals: what capture does not take, and what only looks like it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import fx

from helpers.captured import captured, ops, through_dynamo, values
from pab_compile.dynamo import trace_once
from pab_compile.passes.errors import UnsupportedModelError
from pab_compile.passes.graph.capture import capture


def test_a_region_of_autocast_is_refused() -> None:
    def model(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = x @ w
        return y.float() + 1

    with pytest.raises(UnsupportedModelError, match=r"switches torch\.autocast on or off inside"):
        through_dynamo(model, values(2, 3), values(3, 3))


def test_a_region_that_switches_autocast_off_where_none_is_on_is_inlined() -> None:
    def model(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            y = x @ w
        return y + 1

    assert ops(through_dynamo(model, values(2, 3), values(3, 3))) == ["matmul", "add"]
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(UnsupportedModelError, match=r"torch\.autocast on or off"),
    ):
        through_dynamo(model, values(2, 3), values(3, 3))


@pytest.mark.filterwarnings("ignore:In CPU autocast")
def test_a_region_for_a_dtype_that_cpus_do_not_cast_to_is_inlined_where_none_is_on() -> None:
    def model(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.float32):
            y = x.bfloat16() @ w.bfloat16()
        return y + 1

    captured = through_dynamo(model, values(2, 3), values(3, 3))
    assert ops(captured) == ["_to_copy", "_to_copy", "matmul", "add"]
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(UnsupportedModelError, match=r"torch\.autocast on or off"),
    ):
        through_dynamo(model, values(2, 3), values(3, 3))


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_a_region_that_casts_float32_to_float32_is_inlined_and_any_other_refused() -> None:
    def model(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", torch.float32):
            y = x.float() @ w
            low, high = y.chunk(2)
        return (low + high).bfloat16()

    captured = through_dynamo(model, values(2, 3).bfloat16(), values(3, 3))
    assert ops(captured) == ["_to_copy", "matmul", "split", "getitem", "getitem", "add", "_to_copy"]
    with pytest.raises(UnsupportedModelError, match=r"torch\.autocast on or off"):
        through_dynamo(model, values(2, 3).bfloat16(), values(3, 3).double())


def test_a_tensor_that_is_given_other_memory_is_refused() -> None:
    class Recast(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.weight.data = self.weight.data + 1
            return super().forward(x)

    with pytest.raises(UnsupportedModelError, match="gives a tensor other memory"):
        through_dynamo(Recast(2, 2).requires_grad_(False), torch.ones(1, 2))


def test_sizes_that_depend_on_values_are_refused() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x[x > 0].sum()

    with pytest.raises(UnsupportedModelError, match="could not be captured"):
        captured(model, x=values(2, 3))


def test_what_vmap_makes_of_an_input_is_refused_and_the_vmap_left() -> None:
    def one(row: torch.Tensor) -> torch.Tensor:
        return row.new_zeros(3, dtype=torch.int32) + row

    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.vmap(one)(x)

    def look(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        with pytest.raises(UnsupportedModelError, match="could not be captured"):
            capture(graph_module, inputs)
        torch.rand(2)  # an error inside of a vmap
        return graph_module.forward(*inputs)

    trace_once(model, [values(2, 3)], {}, look)
