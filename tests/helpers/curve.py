"""A model whose exact weights are known, a schedule, and samplers that call it."""

from __future__ import annotations

from collections.abc import Callable

import torch

NUM_STEPS = 12
COMPUTED = [0, 1, 2, 5, 8]


class Curve(torch.nn.Module):
    """Its output is a parabola of the timestep, whatever the latents."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.parts = torch.randn(3, 1, 4, 5, 6, generator=generator)
        self.calls = 0

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        t = timestep[0] / 1000
        return self.parts[0] + t * self.parts[1] + t * t * self.parts[2] + 0 * latents


def timesteps_of(num_steps: int) -> torch.Tensor:
    """Uneven: a shifted schedule."""
    even = torch.linspace(1, 1 / num_steps, num_steps)
    return 1000 * 3 * even / (1 + 2 * even)


def euler(call: Callable[..., torch.Tensor], seed: int, num_steps: int) -> torch.Tensor:
    """A sampler that adds up the outputs, written into the latents."""
    x = torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(seed))
    timesteps = timesteps_of(num_steps)
    ends = torch.cat([timesteps[1:], torch.zeros(1)])
    for t, end in zip(timesteps, ends, strict=True):
        x += (end - t) / 1000 * call(x, t.expand(1))
    return x


def multistep(call: Callable[..., torch.Tensor], seed: int, num_steps: int) -> torch.Tensor:
    """A sampler that also reads the last output, with noise of its own."""
    generator = torch.Generator().manual_seed(seed)
    x, last = torch.randn(1, 4, 5, 6, generator=generator), None
    for t in timesteps_of(num_steps):
        v = call(x, t.expand(1))
        x = 0.97 * x - (1.5 * v - 0.5 * (v if last is None else last)) / num_steps
        x, last = x + 0.01 * torch.randn(x.shape, generator=generator), v
    return x
