"""One graph runs several times in a forward with the same input: each time has its own outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pab_compile
from helpers.latte import compiled_pab

WIDTH, NUM_STEPS = 6, 4
FLOOR = {"ranges": {"output": 2}, "window": (0.0, 1.0), "cut": "output"}
PROMPT = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ self.weight)


class Layers(nn.Module):
    """All layers read the prompt. The loop breaks, so only they are compiled."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.order = [0, 1, 2]

    def forward(
        self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor
    ) -> torch.Tensor:
        for number in self.order:
            torch._dynamo.graph_break()
            x = 2 * x + self.layers[number](context)
        return x + timestep[:, None, None]


def given(step: int) -> dict[str, torch.Tensor]:
    x = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(step))
    return {"x": x, "timestep": torch.full((2,), 100.0 - step), "context": PROMPT}


def test_layers_with_one_input_reuse_their_own_outputs() -> None:
    model = Layers().eval().requires_grad_(False)
    compiled = compiled_pab(model, **FLOOR)
    for step in range(NUM_STEPS):
        with pab_compile.step(step, NUM_STEPS):
            assert torch.equal(compiled(**given(step)), model(**given(step)))
    stats = pab_compile.stats(compiled)
    assert stats.computed == stats.reused == {"output": 2 * len(model.layers)}
    assert stats.notes == ()


@pytest.mark.parametrize("order", [[0, 2, 1], [0, 2]])
def test_layers_that_python_chooses_anew_compute(order: list[int]) -> None:
    model = Layers().eval().requires_grad_(False)
    compiled = compiled_pab(model, **FLOOR)
    for step in range(NUM_STEPS):
        model.order = order if step == NUM_STEPS - 1 else [0, 1, 2]
        with pab_compile.step(step, NUM_STEPS):
            assert torch.equal(compiled(**given(step)), model(**given(step)))
    [note] = pab_compile.stats(compiled).notes
    assert "ran with other weights than before (test_turns.py:" in note
