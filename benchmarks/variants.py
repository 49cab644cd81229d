"""Variants: the ways to run one model that are compared over whole generations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import PyramidAttentionBroadcastConfig

import pab_compile

from .sampling import Task, generate

EAGER, STOCK = "eager", "stock torch.compile"
HOOKS, HOOKS_COMPILED = "diffusers PAB hooks, eager", "diffusers PAB hooks + torch.compile"
RANGES = {"spatial": 2, "temporal": 4, "cross": 6}
WINDOW = (150, 850)
"""In timestep values, as diffusers' hooks need it, so that both follow the same schedule."""
PAB246: dict[str, Any] = {"ranges": RANGES, "window": WINDOW}
THIRD_LINEAR: dict[str, Any] = {
    "ranges": {"spatial": 3, "temporal": 3, "cross": 3, "mlp": 3},
    "predict": 1,
    "window": (0.1, 1.0),
}


def _nothing(*_: Any) -> None:
    return None


@dataclass
class Variant:
    """One way to run a model.

    Attributes:
        name: label in the table.
        call: called in the model's place.
        on_timestep: told the timestep before every step.
        before: called before every generation.
        latents: of the last generation.
    """

    name: str
    call: Callable[..., tuple[torch.Tensor, ...]]
    on_timestep: Callable[[torch.Tensor], Any] = _nothing
    before: Callable[[], Any] = _nothing
    latents: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def generate(self, task: Task, num_steps: int | None = None) -> None:
        self.before()
        self.latents = generate(task, self.call, self.on_timestep, num_steps)


def eager(task: Task) -> Variant:
    """The model as it is."""
    return Variant(EAGER, task.model)


def stock(task: Task) -> Variant:
    """`torch.compile(model)`."""
    return Variant(STOCK, torch.compile(task.model))


def pab(task: Task, name: str, options: dict[str, Any]) -> Variant:
    """`torch.compile(model, backend="pab", options=options)`."""
    compiled = torch.compile(task.model, backend="pab", options=options)
    return Variant(name, compiled, before=pab_compile.reset)


def hooks(task: Task, compiled: bool) -> Variant:
    """PAB as diffusers has it, on a copy, with the identifiers that are right for Latte."""
    model = copy.deepcopy(task.model)
    current: list[torch.Tensor] = [task.sampler.timesteps[0]]
    model.enable_cache(
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=RANGES["spatial"],
            temporal_attention_block_skip_range=RANGES["temporal"],
            cross_attention_block_skip_range=RANGES["cross"],
            spatial_attention_timestep_skip_range=WINDOW,
            temporal_attention_timestep_skip_range=WINDOW,
            cross_attention_timestep_skip_range=WINDOW,
            spatial_attention_block_identifiers=("^transformer_blocks",),
            current_timestep_callback=lambda: current[0],  # type: ignore[arg-type, return-value]
        )
    )

    def note(timestep: torch.Tensor) -> None:
        current[0] = timestep

    call = torch.compile(model) if compiled else model
    name = HOOKS_COMPILED if compiled else HOOKS
    return Variant(name, call, note, before=model._reset_stateful_cache)
