"""Benchmark `efficiency`: how near a generation comes to what skipping blocks allows.

The limit of a step that reuses everything is the model with its blocks physically removed, and that
of a step that computes is the whole model, both compiled by stock `torch.compile`. Beside them runs
a call of the compiled model that computes nothing: the time that Dynamo takes for its guards.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from rich.progress import Progress

import pab_compile

from .families import FAMILIES, Family, make
from .results import Result, Target
from .timing import median

STEPS = 30
PLANS = ("linear3", "linear5")
QUICK = {"4 layers": (4, 16, 8)}
SIZES = {"4 layers": (4, 64, 16), "28 layers": (28, 32, 16), "28 layers, wider": (28, 64, 32)}
"""Name -> layers, channels per head, side of the latents."""
WORDS = 16
TARGET = Target(">=", 0.97)
ROWS = {
    "all": ("whole generation, time of the limit", TARGET),
    "computed": ("steps that compute, time of the limit", TARGET),
    "reused": ("steps that reuse, time of the limit", None),
    "idle": ("steps that reuse, a call that computes nothing", None),
}
"""Kind of a ratio -> its words, and its target."""


class _Step(NamedTuple):
    """A step: whether it is computed or reused, and seconds of ours, the limit and an idle call."""

    kind: str
    ours: float
    limit: float
    idle: float


def run(result: Result, quick: bool, progress: Progress) -> None:
    """Measure all families, shallow and deep."""
    sizes = QUICK if quick else SIZES
    rounds = 1 if quick else 5
    result.settings = {"steps": STEPS, "rounds": rounds, "calls per step": 1}
    task = progress.add_task("efficiency", total=len(FAMILIES) * len(sizes) * len(PLANS))
    for words, size in sizes.items():
        for name, family in FAMILIES.items():
            label = f"{name}, {words}"
            progress.update(task, description=label)
            _measure(result, label, family, size, rounds, progress, task)
    progress.remove_task(task)
    result.notes.append(
        "Limit: for a step that computes, the model under stock torch.compile; for a step that "
        "reuses everything, the same without its blocks. Both run beside every step of ours. A "
        "ratio is time of the limit / time of ours, summed over the steps of a generation. A call "
        "that computes nothing is one of the whole model under torch.compile, with a backend that "
        "returns what it returned before. Wider: heads of 64 instead of 32 channels, and 4 times "
        "the tokens."
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
    label: str,
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
    limits = {"computed": torch.compile(model), "reused": torch.compile(without_blocks(model))}
    idle = torch.compile(model, backend=_once)
    with torch.no_grad():
        for plan in PLANS:
            ours = torch.compile(model, backend="pab", options={"ranges": plan})
            pattern = _pattern(ours, inputs, timesteps)
            shares: dict[str, list[float]] = {"all": [], "computed": [], "reused": [], "idle": []}
            for turn in range(rounds + 1):
                steps = _generation(ours, limits, idle, inputs, timesteps, pattern)
                if not turn:  # the first one warms up
                    continue
                reused = [step for step in steps if step.kind == "reused"]
                shares["all"].append(_share(steps))
                shares["computed"].append(_share([s for s in steps if s.kind == "computed"]))
                shares["reused"].append(_share(reused))
                shares["idle"].append(sum(s.idle for s in reused) / sum(s.ours for s in reused))
            for kind, (words, target) in ROWS.items():
                result.add(
                    f"{label}, {plan}: {words} / ours",
                    median(shares[kind]),
                    target=target,
                    samples=shares[kind],
                )
            progress.advance(task)
    torch.compiler.reset()


def _share(steps: list[_Step]) -> float:
    """Time of the limit / time of ours."""
    return sum(step.limit for step in steps) / sum(step.ours for step in steps)


def _once(graph: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
    """A backend that runs a graph once and returns the same outputs from then on."""
    outputs: list[Any] = []

    def run(*inputs: Any) -> Any:
        if not outputs:
            outputs.append(graph(*inputs))
        return outputs[0]

    return run


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
    limits: dict[str, Callable[..., Any]],
    idle: Callable[..., Any],
    inputs: dict[str, torch.Tensor],
    timesteps: tuple[torch.Tensor, ...],
    pattern: list[str],
) -> list[_Step]:
    """The seconds of each step of a generation."""
    found = []
    with pab_compile.generation(torch.cat(timesteps)):
        for timestep, kind in zip(timesteps, pattern, strict=True):
            seconds = []
            for call in (ours, limits[kind], idle):
                start = time.perf_counter()
                call(**inputs, timestep=timestep)
                seconds.append(time.perf_counter() - start)
            found.append(_Step(kind, *seconds))
    return found
