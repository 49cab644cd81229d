"""Benchmark `gpu`: whole generations of Latte-1 at its real size.

Without a CUDA device it runs at a much reduced size on the CPU, says so, and reports ratios only.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from rich.progress import Progress

from pab_compile.tuning.score import psnr

from .latte import LATTE_1, TINY
from .results import Result
from .sampling import Task, random_task
from .synchronisations import LoopProfile, StepMarker, profile_loop
from .timing import median, ratios
from .variants import EAGER, STOCK, THIRD_LINEAR, Variant, eager, pab, stock

LATTE_PRESET, LINEAR = "pab, preset latte", "pab, all sites every third step, linear"
PROFILED_STEPS = 16
"""Enough to enter the window of the preset, few enough for the profiler."""


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


def run(result: Result, quick: bool, progress: Progress) -> None:
    """Generates with every variant in turns and profiles one loop of each."""
    on_gpu = torch.cuda.is_available()
    reduced = quick or not on_gpu
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    size = TINY if reduced else LATTE_1
    num_steps, rounds = (20, 2) if reduced else (50, 3)
    result.settings = {
        "layers": size.num_layers,
        "width": size.num_heads * size.head_dim,
        "latents": f"2 x 4 x {size.num_frames} x {size.side} x {size.side}",
        "dtype": str(dtype).removeprefix("torch."),
        "steps": num_steps,
        "rounds": rounds,
    }
    if not on_gpu:
        result.file_name = "gpu_reduced_on_cpu"
        result.notes.append("NOT RUN ON A GPU: no CUDA device; much reduced size on the CPU.")
    bar = progress.add_task(f"building Latte on {device}", total=None)
    task = random_task(size, num_steps, device, dtype)
    progress.remove_task(bar)
    variants = [
        eager(task),
        stock(task),
        pab(task, LATTE_PRESET, {"ranges": "latte"}),
        pab(task, LINEAR, THIRD_LINEAR),
    ]
    seen = _measure(task, variants, rounds, progress)
    torch.compiler.reset()
    _report_speed(result, seen)
    for variant in variants[1:]:
        value = psnr(variant.latents, variants[0].latents)
        result.add(f"PSNR against eager (random weights), {variant.name}", value, "dB")
    if on_gpu:
        _report_device(result, seen)
    _report_waits(result, seen)


def _measure(
    task: Task, variants: list[Variant], rounds: int, progress: Progress
) -> dict[str, Seen]:
    seen = {variant.name: Seen() for variant in variants}
    bar = progress.add_task("generations", total=len(variants) * (rounds + 2))
    for variant in variants:
        progress.update(bar, description=f"first generation: {variant.name}")
        seen[variant.name].first_seconds, _ = _time(task, variant)
        progress.advance(bar)
    for _ in range(rounds):
        for variant in variants:
            progress.update(bar, description=f"generation: {variant.name}")
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            seconds, launched = _time(task, variant)
            mine = seen[variant.name]
            mine.seconds.append(seconds)
            mine.launch_seconds.append(launched)
            if torch.cuda.is_available():
                mine.peak_bytes = max(mine.peak_bytes, torch.cuda.max_memory_allocated())
            progress.advance(bar)
    for variant in variants:
        progress.update(bar, description=f"profile: {variant.name}")
        seen[variant.name].profile = _profile(task, variant)
        progress.advance(bar)
    progress.remove_task(bar)
    return seen


def _time(task: Task, variant: Variant) -> tuple[float, float]:
    """Seconds of a generation, and of these until the host had launched all of it."""
    _synchronise()
    start = time.perf_counter()
    variant.generate(task)
    launched = time.perf_counter() - start
    _synchronise()
    return time.perf_counter() - start, launched


def _profile(task: Task, variant: Variant) -> LoopProfile:
    latents = variant.latents

    def loop(marker: StepMarker) -> None:
        marked = Variant(variant.name, variant.call, marker, variant.before)
        marked.generate(task, PROFILED_STEPS)

    found = profile_loop(loop)
    variant.latents = latents
    return found


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _report_speed(result: Result, seen: dict[str, Seen]) -> None:
    samples = {name: mine.seconds for name, mine in seen.items()}
    for name in (LATTE_PRESET, LINEAR):
        for other in (EAGER, STOCK):
            found = ratios(samples, other, name)
            result.add(f"speed-up of {name} / {other}", median(found), samples=found)
    found = ratios(samples, EAGER, STOCK)
    result.add(f"for scale, {STOCK} / {EAGER}", median(found), samples=found)


def _report_device(result: Result, seen: dict[str, Seen]) -> None:
    """Absolute numbers, which mean something on a GPU only."""
    for name, mine in seen.items():
        result.add(f"generation, {name}", median(mine.seconds), "s", samples=mine.seconds)
        launched = mine.launch_seconds
        result.add(f"of these until all is launched, {name}", median(launched), "s")
        if mine.profile is not None:
            busy = mine.profile.device_busy_seconds
            result.add(f"kernels of the first {PROFILED_STEPS} steps, {name}", busy, "s")
        result.add(f"first generation, {name}", mine.first_seconds, "s")
        result.add(f"peak memory, {name}", mine.peak_bytes / 2**30, "GiB")


def _report_waits(result: Result, seen: dict[str, Seen]) -> None:
    for name, mine in seen.items():
        if mine.profile is None:
            continue
        first, later = (
            sum(w.values()) for w in (mine.profile.first_step, mine.profile.later_steps)
        )
        result.add(f"synchronisations in the first step, {name}", first, "waits")
        label = f"synchronisations in the {PROFILED_STEPS - 1} profiled steps after it, {name}"
        result.add(label, later, "waits")
        for where, waits in (
            ("first", mine.profile.first_step),
            ("later", mine.profile.later_steps),
        ):
            if waits:
                listed = ", ".join(f"{count} {wait}" for wait, count in sorted(waits.items()))
                result.notes.append(f"Waits, {where} steps, {name}: {listed}")
