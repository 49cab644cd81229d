"""Benchmark `efficiency`: how near a generation comes to what skipping blocks allows.

The limit of a step that reuses everything is the model with its blocks physically removed, and that
of a step that computes is the whole model, both compiled by stock `torch.compile`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.progress import Progress

import pab_compile

from .families import FAMILIES, Family, make
from .results import Result, Target
from .timing import median

STEPS = 30
PLANS = ("linear3", "linear5")
SIZES = {4: (64, 16), 28: (32, 16)}
"""Layers -> channels per head, side of the latents."""
WORDS = 16
TARGET = Target(">=", 0.97)


def run(result: Result, quick: bool, progress: Progress) -> None:
    """Measure all families, shallow and deep."""
    sizes = {4: (16, 8)} if quick else SIZES
    rounds = 1 if quick else 5
    result.settings = {"steps": STEPS, "rounds": rounds, "calls per step": 1}
    task = progress.add_task("efficiency", total=len(FAMILIES) * len(sizes) * len(PLANS))
    for layers, (head_dim, side) in sizes.items():
        for name, family in FAMILIES.items():
            progress.update(task, description=f"{name}, {layers} layers")
            _measure(result, name, family, (layers, head_dim, side), rounds, progress, task)
    progress.remove_task(task)
    result.notes.append(
        "Limit: for a step that computes, the model under stock torch.compile; for a step that "
        "reuses everything, the same without its blocks. Both run beside every step of ours. A "
        "ratio is time of the limit / time of ours, summed over the steps of a generation."
    )


def without_blocks(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of a model whose lists of modules with attention are empty."""
    found = copy.deepcopy(model)
    for module in found.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.ModuleList) and _attends(child):
                setattr(module, name, torch.nn.ModuleList())
    return found


def _attends(blocks: torch.nn.ModuleList) -> bool:
    return any("attn" in name for name, _ in blocks.named_modules())


def _measure(
    result: Result,
    name: str,
    family: Family,
    size: tuple[int, int, int],
    rounds: int,
    progress: Progress,
    task: Any,
) -> None:
    layers, head_dim, side = size
    model = make(family, layers, head_dim)
    inputs = family.inputs(WORDS, side, side)
    timesteps = torch.linspace(999, 0, STEPS).split(1)
    torch.compiler.reset()
    whole = torch.compile(model)
    bare = torch.compile(without_blocks(model))
    with torch.no_grad():
        for plan in PLANS:
            ours = torch.compile(model, backend="pab", options={"ranges": plan})
            pattern = _pattern(ours, inputs, timesteps)
            shares: dict[str, list[float]] = {"computed": [], "reused": [], "all": []}
            for turn in range(rounds + 1):
                seconds = _generation(ours, whole, bare, inputs, timesteps, pattern)
                for kind, values in shares.items() if turn else ():  # the first one warms up
                    chosen = [s for letter, s in seconds if kind in ("all", letter)]
                    values.append(sum(b for _, b in chosen) / sum(a for a, _ in chosen))
            label = f"{name}, {layers} layers, {plan}"
            for kind, words in (
                ("all", "whole generation"),
                ("computed", "steps that compute"),
                ("reused", "steps that reuse"),
            ):
                target = TARGET if kind != "reused" else None
                result.add(
                    f"{label}: {words}, time of the limit / ours",
                    median(shares[kind]),
                    target=target,
                    samples=shares[kind],
                )
            progress.advance(task)
    torch.compiler.reset()


def _pattern(
    ours: Callable[..., Any], inputs: dict[str, torch.Tensor], timesteps: tuple[torch.Tensor, ...]
) -> list[str]:
    """Per step of a generation, whether it computes or reuses."""
    with pab_compile.generation(torch.cat(timesteps)):
        for timestep in timesteps:
            ours(**inputs, timestep=timestep)
    letters = {"C": "computed", "-": "reused"}
    return [letters[pattern[0]] for pattern in pab_compile.stats(ours).patterns]


def _generation(
    ours: Callable[..., Any],
    whole: Callable[..., Any],
    bare: Callable[..., Any],
    inputs: dict[str, torch.Tensor],
    timesteps: tuple[torch.Tensor, ...],
    pattern: list[str],
) -> list[tuple[str, tuple[float, float]]]:
    """Per step, what it does, and the seconds of ours and of the limit."""
    found = []
    with pab_compile.generation(torch.cat(timesteps)):
        for timestep, letter in zip(timesteps, pattern, strict=True):
            limit = whole if letter == "computed" else bare
            start = time.perf_counter()
            ours(**inputs, timestep=timestep)
            middle = time.perf_counter()
            limit(**inputs, timestep=timestep)
            found.append((letter, (middle - start, time.perf_counter() - middle)))
    return found
