"""Solvers of a rectified flow: what fewer steps can be taken with.

Latents at the level ``s`` move by the velocity: ``dx/ds = v(x, s)``, from ``s = 1`` (noise) to 0.
The timestep of the model is ``1000 s``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Solver = Callable[[Velocity, torch.Tensor, int], torch.Tensor]


def levels_of(num_steps: int, shift: float = 1.0) -> torch.Tensor:
    """The levels before and after each step, from 1 to 0; even at shift 1."""
    even = torch.linspace(1, 0, num_steps + 1)
    return shift * even / (1 + (shift - 1) * even)


@torch.no_grad()
def euler(
    velocity: Velocity, noise: torch.Tensor, num_steps: int, shift: float = 1.0
) -> torch.Tensor:
    """The sampler that the models of the examples are trained for."""
    video, levels = noise, levels_of(num_steps, shift)
    timesteps = 1000 * levels[:-1]
    for step, timestep in enumerate(timesteps):
        video = video + (levels[step + 1] - levels[step]) * velocity(video, timestep)
    return video


@torch.no_grad()
def adams_bashforth(
    velocity: Velocity, noise: torch.Tensor, num_steps: int, shift: float = 1.0
) -> torch.Tensor:
    """The solver of second order that reads the last velocity too."""
    video, last, length = noise, None, 0.0
    for level, after in itertools.pairwise(levels_of(num_steps, shift)):
        now, ahead = velocity(video, 1000 * level), float(after - level)
        slope = 0.0 if last is None else (now - last) / length
        video = video + ahead * (now + ahead / 2 * slope)
        last, length = now, ahead
    return video


@torch.no_grad()
def scheduled(scheduler: Any, velocity: Velocity, noise: torch.Tensor, num_steps: int) -> Any:
    """A scheduler of diffusers."""
    scheduler.set_timesteps(num_steps)
    video = noise
    for timestep in scheduler.timesteps:
        now = velocity(video, timestep.to(torch.float32))
        video = scheduler.step(now, timestep, video).prev_sample
    return video


_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 1.0}
SOLVERS: dict[str, Solver] = {
    "Euler": euler,
    "Adams-Bashforth 2": adams_bashforth,
    "DPM++ 2M": lambda v, x, n: scheduled(DPMSolverMultistepScheduler(**_FLOW), v, x, n),
    "UniPC 2": lambda v, x, n: scheduled(UniPCMultistepScheduler(**_FLOW), v, x, n),
}
