"""A sampler of second order: what fewer steps can be taken with, at no more model calls."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Step:
    """What a step returns, as the samplers of diffusers do."""

    prev_sample: torch.Tensor


class AdamsBashforth:
    """The two-step Adams-Bashforth method: the slope of the last two velocities is followed.

    It stands in the place of `FlowMatchEulerDiscreteScheduler`. `benchmarks/frontier` compares it
    with other solvers.
    """

    def set_timesteps(self, sigmas: list[float]) -> None:
        """Starts a generation at these noise levels."""
        self.levels = [*sigmas, 0.0]
        self.timesteps = 1000 * torch.tensor(sigmas)
        self.taken = 0
        self.last = torch.empty(0)

    def step(self, velocity: torch.Tensor, _: torch.Tensor, video: torch.Tensor) -> Step:
        """Goes from one level to the next."""
        now, after = self.levels[self.taken : self.taken + 2]
        ahead, slope = after - now, torch.zeros(())
        if self.taken:
            slope = (velocity - self.last) / (now - self.levels[self.taken - 1])
        self.last, self.taken = velocity, self.taken + 1
        return Step(video + ahead * (velocity + ahead / 2 * slope))
