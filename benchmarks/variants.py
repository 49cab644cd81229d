"""Variants: the ways to run one model that are compared over whole generations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig

import pab_compile
from pab_compile.passes.graph.flops import count_flops

from .sampling import Task, generate

EAGER, STOCK = "eager", "stock torch.compile"
HOOKS, HOOKS_COMPILED = "diffusers PAB hooks, eager", "diffusers PAB hooks + torch.compile"
AUTOTUNED = "stock torch.compile, max-autotune"
TAYLOR, TAYLOR_COMPILED = "TaylorSeer hooks, eager", "TaylorSeer hooks + torch.compile"
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


def autotuned(task: Task) -> Variant:
    """`torch.compile(model, mode="max-autotune")`."""
    return Variant(AUTOTUNED, torch.compile(task.model, mode="max-autotune"))


def taylorseer(task: Task, compiled: bool) -> Variant:
    """TaylorSeer as diffusers has it: attention every third step, else along the line."""
    model = copy.deepcopy(task.model)
    model.enable_cache(
        TaylorSeerCacheConfig(
            cache_interval=3,
            disable_cache_before_step=3,
            max_order=1,
            taylor_factors_dtype=torch.float32,
            cache_identifiers=[r"(temporal_)?transformer_blocks\.\d+\.attn\d"],
        )
    )
    inner = torch.compile(model) if compiled else model

    def call(**inputs: Any) -> Any:
        with model.cache_context("generation"):
            return inner(**inputs)

    name = TAYLOR_COMPILED if compiled else TAYLOR
    return Variant(name, call, before=model._reset_stateful_cache)


def allowed_speedup(task: Task, options: dict[str, Any]) -> float:
    """Operations of a generation without reuse / those of a generation with these options.

    The pieces count their operations as they run, so this is the limit of a plan wherever time is
    in proportion to operations.
    """
    counted = [0]

    def inner(graph_module: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        flops = count_flops(graph_module.graph.nodes)

        def function(*args: torch.Tensor) -> Any:
            counted[0] += flops
            return graph_module(*args)

        return function

    variant = pab(task, "counted", {**options, "inner": inner})
    variant.generate(task)
    reused, counted[0] = counted[0], 0
    variant = pab(task, "counted", {**options, "inner": inner, "ranges": {}, "predict": 0})
    variant.generate(task)
    return counted[0] / reused


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
