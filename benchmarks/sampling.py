"""Sampling: a whole generation with any callable in the model's place.

Both samplers used here are linear, `latents <- a * latents + b * prediction`, with numbers that are
known before the loop. So the loop itself never reads from the device: a synchronisation seen inside
it comes from the model.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, LatteTransformer3DModel
from safetensors.torch import load_file

from .latte import Size, make_latents, make_model, make_prompts

DIGITS_DIR = Path(__file__).parents[1] / "examples" / "digits_latte"
DIGITS_NO_PROMPT = 10


@dataclass(frozen=True)
class Sampler:
    """Timesteps, and the two factors of every step.

    Attributes:
        timesteps: one table on the model's device; every step hands the model a view of it.
        factors: (of the latents, of the prediction) per step.
    """

    timesteps: torch.Tensor
    factors: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Task:
    """A generation to run: a model, a prompt, a start and a sampler."""

    name: str
    model: LatteTransformer3DModel
    latents: torch.Tensor
    prompts: torch.Tensor
    sampler: Sampler
    guidance: float

    @property
    def num_steps(self) -> int:
        return len(self.sampler.factors)


def ddim(num_steps: int, device: str = "cpu") -> Sampler:
    """Makes the DDIM sampler of Latte-1 (eta 0, linear betas, leading spacing, no offset)."""
    scheduler = DDIMScheduler(
        beta_start=0.0001, beta_end=0.02, beta_schedule="linear", steps_offset=0, clip_sample=False
    )
    scheduler.set_timesteps(num_steps)
    table = scheduler.timesteps.tolist()
    kept = scheduler.alphas_cumprod.double()
    alphas = [float(kept[t]) for t in table]
    factors = []
    for now, after in zip(alphas, [*alphas[1:], 1.0], strict=True):
        scale = (after / now) ** 0.5
        factors.append((scale, (1 - after) ** 0.5 - scale * (1 - now) ** 0.5))
    return Sampler(scheduler.timesteps.to(device), tuple(factors))


def euler(num_steps: int, shift: float = 1.0) -> Sampler:
    """Makes the Euler sampler of a rectified flow; evenly spaced at shift 1, as the demo uses."""
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    levels = torch.linspace(1.0, 1.0 / num_steps, num_steps).tolist()
    scheduler.set_timesteps(sigmas=levels)
    sigmas = scheduler.sigmas.tolist()
    factors = [(1.0, after - now) for now, after in itertools.pairwise(sigmas)]
    return Sampler(scheduler.timesteps, tuple(factors))


def random_task(
    size: Size, num_steps: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Task:
    """Makes a task with random weights: right for speed, without meaning for quality."""
    return Task(
        "random weights",
        make_model(size, device, dtype),
        make_latents(size, device, dtype),
        make_prompts(size, device, dtype),
        ddim(num_steps, device),
        guidance=7.5,
    )


def digits_task(num_steps: int, num_videos: int) -> Task:
    """Loads the demo's trained model from `DIGITS_DIR`."""
    model = LatteTransformer3DModel.from_pretrained(DIGITS_DIR / "transformer")
    config = json.loads((DIGITS_DIR / "transformer" / "config.json").read_text())
    table = load_file(DIGITS_DIR / "prompts.safetensors")["prompts"]
    prompted = torch.arange(num_videos) % DIGITS_NO_PROMPT
    rows = torch.cat([torch.full_like(prompted, DIGITS_NO_PROMPT), prompted])
    side, frames = config["sample_size"], config["video_length"]
    noise = torch.randn(
        (num_videos, config["in_channels"], frames, side, side),
        generator=torch.Generator().manual_seed(0),
    )
    model = model.eval().requires_grad_(False)
    return Task("trained on digits", model, noise, table[rows], euler(num_steps), guidance=2.0)


@torch.no_grad()
def generate(
    task: Task,
    call: Callable[..., tuple[torch.Tensor, ...]],
    on_timestep: Callable[[torch.Tensor], Any] = lambda t: None,
    num_steps: int | None = None,
) -> torch.Tensor:
    """Runs a generation with classifier-free guidance in one batched call per step.

    Args:
        task: what to generate.
        call: called in place of the model.
        on_timestep: told the timestep before every call.
        num_steps: stop after so many steps.

    Returns:
        The final latents.
    """
    latents, channels = task.latents, task.latents.shape[1]
    steps = list(zip(task.sampler.timesteps, task.sampler.factors, strict=True))
    for t, (a, b) in steps[:num_steps]:
        on_timestep(t)
        both = torch.cat([latents, latents])
        prediction = call(
            hidden_states=both,
            timestep=t.expand(len(both)),
            encoder_hidden_states=task.prompts,
            return_dict=False,
        )[0][:, :channels]
        free, prompted = prediction.chunk(2)
        latents = a * latents + b * (free + task.guidance * (prompted - free))
    return latents
