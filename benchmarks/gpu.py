"""Benchmark `gpu`: whole generations of three models at their real sizes, in ten minutes.

Latte-1, FLUX.1 and Wan 2.1 1.3B, with random weights in bfloat16: seconds, memory, time until all
is launched, and how often the loop waits for the device. After every model the results are written,
so a run that is stopped keeps what it has. Without a CUDA device, narrow models of the same
families run on the CPU. Then only ratios are reported, and a note says so.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.progress import Progress

import pab_compile

from .families import FAMILIES, make
from .real_models import REAL_MODELS, RealModel
from .results import RESULTS_DIR, Result, write
from .synchronisations import LoopProfile, StepMarker, profile_loop
from .timing import median, ratios
from .variants import EAGER, STOCK

PLANS = ("pab246", "quality", "balanced", "fast")
CUDA_GRAPHS = "balanced, with CUDA graphs"
MINUTES = 9.5
PROFILED_STEPS = 12
"""Enough to reuse, few enough for the profiler."""


def _wan() -> dict[str, Any]:
    """832 x 480, 81 frames."""
    latents = torch.empty(1, 16, 21, 60, 104, dtype=torch.bfloat16, device="meta")
    return {**REAL_MODELS["Wan 2.1 14B"].inputs(), "hidden_states": latents}


WAN_SMALL = RealModel(
    "Wan 2.1 1.3B",
    "832x480, 81",
    "WanTransformer3DModel",
    _wan,
    {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30},
)
MODELS = {"Latte": REAL_MODELS["Latte-1"], "Flux": REAL_MODELS["FLUX.1"], "Wan": WAN_SMALL}
"""Family of the reduced model -> the model at its real size, in the order of the run."""


class OverTimeError(Exception):
    """The time of the whole run is over."""


@dataclass(frozen=True)
class Variant:
    """One way to run a model.

    Attributes:
        name: label in the table.
        call: called in the model's place.
        plan: entered around every generation.
    """

    name: str
    call: Callable[..., Any]
    plan: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass
class Seen:
    """What was measured of one variant.

    Attributes:
        first_seconds: the first generation, compilation included.
        seconds: each generation after it, with the device finished.
        launch_seconds: until the host had launched everything.
        peak_bytes: most memory allocated on the device.
        profile: synchronisations in the loop.
    """

    first_seconds: float = 0.0
    seconds: list[float] = field(default_factory=list)
    launch_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    profile: LoopProfile | None = None


@dataclass(frozen=True)
class Task:
    """A generation to run.

    Attributes:
        name: of the model.
        model: random weights.
        inputs: arguments of a call without the timestep.
        timesteps: one table on the model's device. Every step gets a view of it.
        deadline: when no further generation begins.
    """

    name: str
    model: torch.nn.Module
    inputs: Mapping[str, Any]
    timesteps: torch.Tensor
    deadline: float

    def generate(
        self, variant: Variant, mark: Callable[[], object] = lambda: None, steps: int | None = None
    ) -> None:
        """Run one generation.

        Raises:
            OverTimeError: the deadline has passed.
        """
        if time.monotonic() > self.deadline:
            raise OverTimeError
        latents, channels = self.inputs["hidden_states"], self.inputs["hidden_states"].shape[1]
        with torch.no_grad(), variant.plan():
            for timestep in self.timesteps.split(1)[:steps]:
                mark()
                given = {**self.inputs, "hidden_states": latents, "timestep": timestep}
                prediction = variant.call(**given, return_dict=False)[0]
                latents = latents - prediction[:, :channels] / len(self.timesteps)


def run(
    result: Result,
    quick: bool,
    progress: Progress,
    inner: str = "inductor",
    minutes: float = MINUTES,
) -> None:
    """Generates with every variant of every model in turns, and profiles one loop of each.

    Args:
        result: gets what was measured.
        quick: the reduced models, also on a GPU.
        progress: shows what is being done.
        inner: the inner compiler.
        minutes: no generation begins after this time.
    """
    on_gpu = torch.cuda.is_available()
    reduced = quick or not on_gpu
    num_steps, rounds = (10, 1) if reduced else (20, 3)
    shown = {real.name: "narrow" if reduced else real.size for real in MODELS.values()}
    result.settings = {**shown, "steps": num_steps, "rounds": rounds, "minutes": minutes}
    if not on_gpu:
        result.file_name = "gpu_reduced_on_cpu"
        result.notes.append("NOT RUN ON A GPU: no CUDA device; narrow models on the CPU.")
    deadline = time.monotonic() + 60 * minutes
    try:
        for family, real in MODELS.items():
            progress.console.print(f"{real.name}: building", highlight=False)
            task = _task(family, real, reduced, num_steps, deadline)
            _run_model(result, task, rounds, inner, progress)
            del task
            torch.compiler.reset()
            if on_gpu and not quick:
                torch.cuda.empty_cache()
                write([result], RESULTS_DIR / "gpu.json")
    except (OverTimeError, KeyboardInterrupt) as error:
        why = "stopped by hand" if isinstance(error, KeyboardInterrupt) else f"{minutes} minutes"
        result.notes.append(f"Not complete ({why}). What is missing was not measured.")


def _task(family: str, real: RealModel, reduced: bool, num_steps: int, deadline: float) -> Task:
    """A model with random weights, and its inputs."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    if reduced:
        model = make(FAMILIES[family], 4, 16).to(device)
        inputs = {name: each.to(device) for name, each in FAMILIES[family].inputs(7, 8, 8).items()}
        clock = torch.float32
    else:
        model = _built(real, device)
        described = real.inputs()
        clock = described.pop("timestep").dtype
        inputs = {name: _random(each, device) for name, each in described.items()}
    highest = 1.0 if clock == torch.bfloat16 else 999.0
    timesteps = torch.linspace(highest, highest / num_steps, num_steps).to(device, clock)
    return Task(real.name, model, inputs, timesteps, deadline)


def _built(real: RealModel, device: str) -> torch.nn.Module:
    """The model in bfloat16, without a copy of its weights in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            import diffusers

            model = getattr(diffusers, real.cls)(**real.config)
    finally:
        torch.set_default_dtype(before)
    return model.to(torch.bfloat16).eval().requires_grad_(False)


def _random(described: Any, device: str) -> Any:
    """Values for an input that is described only. Positions are 0: they do not matter for time."""
    if not isinstance(described, torch.Tensor):
        return described
    if described.ndim < 3 or not described.is_floating_point():
        return torch.ones(described.shape, dtype=described.dtype, device=device)
    return torch.randn(described.shape, device=device).to(torch.bfloat16)


def _run_model(result: Result, task: Task, rounds: int, inner: str, progress: Progress) -> None:
    """Measure all variants of one model, and report also what was measured until it stopped."""
    seen: dict[str, Seen] = {}
    try:
        _measure(result, task, _variants(task.model, inner), seen, rounds, progress)
        if torch.cuda.is_available() and inner == "inductor":
            graphs = pab_compile.enable(
                copy.copy(task.model), "balanced", mode="reduce-overhead"
            ).compiled()[0]
            variants = [Variant(CUDA_GRAPHS, graphs)]
            _measure(result, task, variants, seen, rounds, progress)
    finally:
        _report(result, task.name, {name: mine for name, mine in seen.items() if mine.seconds})


def _variants(model: torch.nn.Module, inner: str) -> list[Variant]:
    """The ways to run a model. Its weights are shared; what is compiled in place is a copy."""
    enabled = copy.copy(model)
    handle = pab_compile.enable(enabled, PLANS[0], inner=inner)
    return [
        Variant(EAGER, model),
        Variant(STOCK, torch.compile(model, backend=inner)),
        *(Variant(plan, enabled, lambda plan=plan: handle.use(plan)) for plan in PLANS),
    ]


def _measure(
    result: Result,
    task: Task,
    variants: list[Variant],
    seen: dict[str, Seen],
    rounds: int,
    progress: Progress,
) -> None:
    bar = progress.add_task(task.name, total=len(variants) * (rounds + 2))
    try:
        running = []
        for variant in variants:
            progress.update(bar, description=f"{task.name}, first generation: {variant.name}")
            try:
                first, _ = _time(task, variant)
            except torch.OutOfMemoryError as error:
                result.notes.append(f"{task.name}, {variant.name}: {str(error).splitlines()[0]}")
                continue
            running.append(variant)
            seen[variant.name] = Seen(first)
            progress.advance(bar)
        for _ in range(rounds):
            for variant in running:
                progress.update(bar, description=f"{task.name}: {variant.name}")
                _time_once_more(task, variant, seen[variant.name])
                progress.advance(bar)
        for variant in running:
            progress.update(bar, description=f"{task.name}, profile: {variant.name}")
            seen[variant.name].profile = _profile(task, variant)
            progress.advance(bar)
    finally:
        progress.remove_task(bar)


def _time_once_more(task: Task, variant: Variant, mine: Seen) -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    seconds, launched = _time(task, variant)
    mine.seconds.append(seconds)
    mine.launch_seconds.append(launched)
    if torch.cuda.is_available():
        mine.peak_bytes = max(mine.peak_bytes, torch.cuda.max_memory_allocated())


def _time(task: Task, variant: Variant) -> tuple[float, float]:
    """Seconds of a generation, and of these until the host had launched all of it."""
    _synchronise()
    start = time.perf_counter()
    task.generate(variant)
    launched = time.perf_counter() - start
    _synchronise()
    return time.perf_counter() - start, launched


def _profile(task: Task, variant: Variant) -> LoopProfile:
    def loop(marker: StepMarker) -> None:
        task.generate(variant, marker, PROFILED_STEPS)

    return profile_loop(loop)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _report(result: Result, model: str, seen: dict[str, Seen]) -> None:
    samples = {name: mine.seconds for name, mine in seen.items()}
    for name in samples:
        for other in (EAGER, STOCK):
            if name not in (EAGER, other) and other in samples:
                found = ratios(samples, other, name)
                result.add(f"{model}: {name}, speed / {other}", median(found), samples=found)
    for name, mine in seen.items():
        if torch.cuda.is_available():
            _report_device(result, f"{model}: {name}", mine)
        if mine.profile is not None:
            _report_waits(result, f"{model}: {name}", mine.profile)


def _report_device(result: Result, label: str, mine: Seen) -> None:
    """Absolute numbers, which mean something on a GPU only."""
    result.add(f"{label}, a generation", median(mine.seconds), "s", samples=mine.seconds)
    launched = statistics.median(mine.launch_seconds)
    result.add(f"{label}, of this until all is launched", launched, "s")
    if mine.profile is not None:
        busy = mine.profile.device_busy_seconds
        result.add(f"{label}, kernels of the first {PROFILED_STEPS} steps", busy, "s")
    result.add(f"{label}, first generation", mine.first_seconds, "s")
    result.add(f"{label}, peak memory", mine.peak_bytes / 2**30, "GiB")


def _report_waits(result: Result, label: str, profile: LoopProfile) -> None:
    steps = (("first step", profile.first_step), ("steps after it", profile.later_steps))
    for which, waits in steps:
        result.add(f"{label}, waits in the {which}", sum(waits.values()), "waits")
        if waits:
            listed = ", ".join(f"{count} {wait}" for wait, count in sorted(waits.items()))
            result.notes.append(f"{label}, waits in the {which}: {listed}")
