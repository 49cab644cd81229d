"""A forward that Dynamo leaves to Python, so that the graphs are those of its parts."""

from __future__ import annotations

import torch
from torch import nn

import pab_compile
from helpers.broken_forwards import noise, sinusoids, table


class Renaming(nn.Module):
    """A part that calls its input as the whole model calls another."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(12, 12)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.project(latents).relu()


class Whole(nn.Module):
    """A part that gets what the model's caller passed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.query = nn.Linear(4, 12), nn.Linear(12, 12)
        self.time = nn.Linear(16, 12)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        x = self.embed(x) + self.time(sinusoids(timestep))[:, None]
        y = torch.cat([x, text], 1)[:, None]
        mixed = nn.functional.scaled_dot_product_attention(self.query(y), y, y)[:, 0, : x.shape[1]]
        return (x + mixed)[..., :4]


class LeftToPython(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Renaming(), Whole()

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
    ) -> torch.Tensor:
        for _ in range(1):
            torch._dynamo.graph_break()  # in a loop: Dynamo gives the whole frame up
            text = self.first(prompt)
        return self.second(latents, timestep, text)


def test_inputs_have_the_callers_names_though_a_part_calls_them_otherwise() -> None:
    torch.manual_seed(0)
    model = LeftToPython().eval()
    inputs = {
        "latents": noise(2, 9, 4),
        "timestep": table()[0].expand(2),
        "prompt": noise(2, 7, 12),
    }
    found = pab_compile.explain(model, **inputs)
    assert (found.latents, found.clock, found.counts()) == ("latents", "timestep", {"joint": 1})
    assert found.sites[0].key_axes == ("s", "text")
