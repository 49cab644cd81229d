"""Benchmark `efficiency`: how near a generation comes to what leaving parts out allows.

The limit of a step is the model with the parts that the step reuses physically removed, compiled
whole by stock `torch.compile`. The limit of a step that computes is the whole model. Beside them
runs a call of the compiled model that computes nothing: the time that Dynamo takes for its guards.
"""

from __future__ import annotations

import time
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from rich.progress import Progress

import pab_compile

from .families import FAMILIES, Family, make
from .removed import attention_kinds, without_attention, without_blocks
from .results import Result, Target
from .timing import median

STEPS = 30
LEVELS = ("quality", "balanced", "fast", "ultra")
CALIBRATED = "calibrated"
PLANS = ("PAB246", "PAB579", *LEVELS, CALIBRATED)
SPEEDUP = 2.5
"""What the calibrated plan is asked for."""
QUICK = {"4 layers": (4, 16, 8)}
SIZES = {"4 layers": (4, 64, 16), "28 layers": (28, 32, 16), "28 layers, wider": (28, 64, 32)}
"""Name -> layers, channels per head, side of the latents."""
FEW_FAMILIES = {"28 layers, wider": ("Latte",)}
"""Sizes at which not all families are measured, since one takes a quarter of an hour there."""
WORDS = 16
TARGET = Target(">=", 0.97)
STEP_SORTS = {
    "computed": ("compute", TARGET),
    "attention in part": ("reuse some attention", TARGET),
    "attention": ("reuse all attention", TARGET),
    "reused": ("reuse all blocks", None),
}
"""Sort of a step -> its words, and its target. A step without blocks takes Python's time."""
IDLE = "reuse all blocks, a call that computes nothing instead of the limit"

Call = Callable[..., Any]


class _Step(NamedTuple):
    """A step: its sort, and seconds of ours, of the limit and of an idle call."""

    sort: str
    ours: float
    limit: float
    idle: float


def run(result: Result, quick: bool, progress: Progress) -> None:
    """Measure all families, shallow and deep."""
    sizes = QUICK if quick else SIZES
    rounds = 1 if quick else 3
    result.settings = {"steps": STEPS, "rounds": rounds, "calls per step": 1}
    pairs = [(name, words) for words in sizes for name in FEW_FAMILIES.get(words, FAMILIES)]
    task = progress.add_task("efficiency", total=len(pairs) * len(PLANS))
    for name, words in pairs:
        label, size = f"{name}, {words}", sizes[words]
        progress.update(task, description=label)
        _measure(result, label, FAMILIES[name], size, rounds, lambda: progress.advance(task))
        progress.console.print(f"measured {label}")
    progress.remove_task(task)
    result.notes.append(
        "Limit: stock torch.compile of the model without the parts that a step reuses. For a step "
        "that computes, this is the whole model. For a step that reuses kinds of attention, the "
        "modules of these return a tensor that is there. For a step that reuses all blocks, the "
        "model has none. The limit runs beside every step of ours. A ratio is time of the limit / "
        "time of ours, summed over the steps of a generation. A call that computes nothing is one "
        "of the whole model under torch.compile, with a backend that returns what it returned "
        "before. Wider: heads of 64 instead of 32 channels, and 4 times the tokens. Calibrated: "
        f"the plan of tune(observation, speedup={SPEEDUP:g})."
    )


class _Limits:
    """The compiled models without what a step reuses, each made when it is first needed."""

    def __init__(self, model: torch.nn.Module, inputs: Mapping[str, Any]) -> None:
        self._model = model
        self._inputs = inputs
        self._kinds = attention_kinds(model, inputs)
        self._made: dict[str, Call] = {}

    def sort(self, pattern: Mapping[str, str]) -> str:
        """Which sort of step has these letters by kind."""
        reused = {kind for kind, letter in pattern.items() if letter == "-"}
        assert "~" not in pattern.values(), f"no limit is known for {pattern}"
        if not reused:
            return "computed"
        if "mlp" in pattern:
            assert reused == set(pattern), f"no limit is known for {pattern}"
            return "reused"
        return "attention" if reused == set(pattern) else "attention in part"

    def of(self, pattern: Mapping[str, str]) -> Call:
        """The limit of a step with these letters by kind."""
        sort = self.sort(pattern)
        reused = [kind for kind, letter in pattern.items() if letter == "-"]
        name = sort if sort in ("computed", "reused") else "/".join(reused)
        if name not in self._made:
            self._made[name] = _compiled(self._removed(sort, reused))
        return self._made[name]

    def _removed(self, sort: str, reused: list[str]) -> torch.nn.Module:
        if sort == "computed":
            return self._model
        if sort == "reused":
            return without_blocks(self._model)
        paths = [path for path, kind in self._kinds.items() if kind in reused]
        return without_attention(self._model, paths, self._inputs)


def _measure(
    result: Result,
    label: str,
    family: Family,
    size: tuple[int, int, int],
    rounds: int,
    advance: Callable[[], object],
) -> None:
    layers, head_dim, side = size
    model = make(family, layers, head_dim)
    inputs = family.inputs(WORDS, side, side)
    timesteps = torch.linspace(999, 0, STEPS).split(1)
    torch.compiler.reset()
    limits = _Limits(model, {**inputs, "timestep": timesteps[0]})
    idle = _compiled(model, backend=_once)
    ours = make(family, layers, head_dim)
    handle = pab_compile.enable(ours, LEVELS[0])
    sorts: dict[str, list[list[_Step]]] = {sort: [] for sort in STEP_SORTS}
    with torch.no_grad():
        seen = pab_compile.observe(lambda: _call_all(ours, inputs, timesteps))
        calibrated = pab_compile.tune(seen, speedup=SPEEDUP)
        for plan in PLANS:
            handle.set(calibrated if plan == CALIBRATED else plan.lower())
            patterns = _patterns(ours, inputs, timesteps)
            shares: list[float] = []
            for turn in range(rounds + 1):
                steps = _generation(ours, limits, idle, inputs, timesteps, patterns)
                if not turn:  # the first one warms up
                    continue
                shares.append(_share(steps))
                for sort, found in sorts.items():
                    if here := [step for step in steps if step.sort == sort]:
                        found.append(here)
            result.add(
                f"{label}: whole generation: {plan}", median(shares), target=TARGET, samples=shares
            )
            advance()
    for sort, (words, target) in STEP_SORTS.items():
        if samples := [_share(steps) for steps in sorts[sort]]:
            result.add(
                f"{label}: steps that: {words}", median(samples), target=target, samples=samples
            )
    nothing = [sum(s.idle for s in steps) / sum(s.ours for s in steps) for steps in sorts["reused"]]
    result.add(f"{label}: steps that: {IDLE}", median(nothing), samples=nothing)
    handle.disable()
    torch.compiler.reset()


def _compiled(model: torch.nn.Module, **options: Any) -> Call:
    """A model compiled apart from others of its class.

    Dynamo keeps what it compiled by code object, and no more than a few results. So the model is
    called from a function with a code object of its own.
    """

    def call(**inputs: torch.Tensor) -> Any:
        return model(**inputs)

    own = types.FunctionType(call.__code__.replace(), globals(), None, None, call.__closure__)
    return torch.compile(own, fullgraph=True, **options)


def _share(steps: list[_Step]) -> float:
    """Time of the limit / time of ours."""
    return sum(step.limit for step in steps) / sum(step.ours for step in steps)


def _once(graph: torch.fx.GraphModule, example_inputs: list[Any]) -> Call:
    """A backend that runs a graph once and returns the same outputs from then on."""
    outputs: list[Any] = []

    def run(*inputs: Any) -> Any:
        if not outputs:
            outputs.append(graph(*inputs))
        return outputs[0]

    return run


def _call_all(
    ours: Call, inputs: Mapping[str, torch.Tensor], timesteps: tuple[torch.Tensor, ...]
) -> None:
    """One generation."""
    with pab_compile.generation(torch.cat(timesteps)):
        for timestep in timesteps:
            ours(**inputs, timestep=timestep)


def _patterns(
    ours: Call, inputs: Mapping[str, torch.Tensor], timesteps: tuple[torch.Tensor, ...]
) -> list[dict[str, str]]:
    """Per step of a generation, kind -> ``C`` computed, ``-`` reused, ``~`` some of each."""
    _call_all(ours, inputs, timesteps)
    found = pab_compile.stats(ours)
    assert len(found.patterns) == STEPS, found
    return [dict(zip(found.kinds, pattern, strict=True)) for pattern in found.patterns]


def _generation(
    ours: Call,
    limits: _Limits,
    idle: Call,
    inputs: Mapping[str, torch.Tensor],
    timesteps: tuple[torch.Tensor, ...],
    patterns: list[dict[str, str]],
) -> list[_Step]:
    """The seconds of each step of a generation."""
    found = []
    with pab_compile.generation(torch.cat(timesteps)):
        for timestep, pattern in zip(timesteps, patterns, strict=True):
            seconds = []
            for call in (ours, limits.of(pattern), idle):
                start = time.perf_counter()
                call(**inputs, timestep=timestep)
                seconds.append(time.perf_counter() - start)
            found.append(_Step(limits.sort(pattern), *seconds))
    return found
