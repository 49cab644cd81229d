"""Refusals: what capture does not take, and what only looks like it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import fx

from helpers.captured import captured, through_dynamo, values
from pab_compile.dynamo import trace_once
from pab_compile.passes.errors import UnsupportedModelError
from pab_compile.passes.graph.capture import capture


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


def test_a_vmap_that_writes_to_what_it_is_given_is_refused_and_left() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.vmap(lambda row: row.mul_(2))(x * 1)

    def look(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        words = r"calls torch.vmap \(test_refusals.py:\d+ in model: return torch.vmap"
        with pytest.raises(UnsupportedModelError, match=words):
            capture(graph_module, inputs)
        torch.rand(2)  # an error inside of a vmap
        return graph_module.forward(*inputs)

    trace_once(model, [values(2, 3)], {}, look)
