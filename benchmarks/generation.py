"""Benchmark `generation`: the speed-up over a whole generation, and the distance from eager."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import Progress

from pab_compile.tuning.score import psnr

from .latte import CPU_SMALL, TINY, Size
from .results import Result
from .sampling import DIGITS_DIR, Task, digits_task, random_task
from .timing import Samples, median, ratios
from .variants import (
    AUTOTUNED,
    EAGER,
    HOOKS,
    HOOKS_COMPILED,
    PAB246,
    STOCK,
    TAYLOR,
    TAYLOR_COMPILED,
    THIRD_LINEAR,
    Variant,
    allowed_speedup,
    autotuned,
    eager,
    hooks,
    pab,
    stock,
    taylorseer,
)
from .workers import Worker

OURS, OURS_LINEAR = "pab, PAB246", "pab, all sites every third step, linear"
MAKERS: dict[str, Callable[[Task], Variant]] = {
    EAGER: eager,
    STOCK: stock,
    AUTOTUNED: autotuned,
    TAYLOR: lambda task: taylorseer(task, compiled=False),
    TAYLOR_COMPILED: lambda task: taylorseer(task, compiled=True),
    HOOKS: lambda task: hooks(task, compiled=False),
    HOOKS_COMPILED: lambda task: hooks(task, compiled=True),
    OURS: lambda task: pab(task, OURS, PAB246),
    OURS_LINEAR: lambda task: pab(task, OURS_LINEAR, THIRD_LINEAR),
}
GENERATE, LATENTS = "generate", "latents"
OPTIONS = {OURS: PAB246, OURS_LINEAR: THIRD_LINEAR}
OTHERS = (EAGER, STOCK, AUTOTUNED, HOOKS, HOOKS_COMPILED, TAYLOR, TAYLOR_COMPILED)


@dataclass(frozen=True)
class Job:
    """What a worker generates: `size` with random weights, or the demo's model without a size."""

    variant: str
    num_steps: int
    size: Size | None
    num_videos: int


def run(result: Result, quick: bool, progress: Progress) -> None:
    """Generates with every variant in turns, with random weights and with the demo's model."""
    num_steps, rounds = (8, 1) if quick else (30, 5)
    size, num_videos = (TINY, 2) if quick else (CPU_SMALL, 4)
    result.settings = {
        "steps": num_steps,
        "rounds": rounds,
        "layers": size.num_layers,
        "width": size.num_heads * size.head_dim,
        "latents": f"2 x 4 x {size.num_frames} x {size.side} x {size.side}",
        "videos of digits": num_videos,
    }
    _compare(result, "random weights", size, num_steps, num_videos, rounds, progress)
    if (DIGITS_DIR / "prompts.safetensors").is_file():
        _compare(result, "trained on digits", None, num_steps, num_videos, rounds, progress)
    result.notes.append(
        "PAB246 follows the same schedule everywhere: window 150 < timestep < 850. PSNR is that of "
        "the final latents against eager; with random weights it says nothing about quality. "
        "TaylorSeer follows another plan: attention every third step along a line. What the "
        "operations allow is no reuse / the plan, counted while the pieces run. First Block Cache "
        "and MagCache do not take this model; `python -m benchmarks.quality --model joint` has "
        "both beside plans of ours, with PSNR."
    )


class Generator:
    """Generates with a job's variant, in a worker."""

    def __init__(self, job: Job) -> None:
        self._task = _task(job)
        self._variant = MAKERS[job.variant](self._task)

    def __call__(self, asked: str) -> Any:
        """Runs a generation and returns its seconds; or returns the latents of the last one."""
        if asked == LATENTS:
            return self._variant.latents.numpy()
        start = time.perf_counter()
        self._variant.generate(self._task)
        return time.perf_counter() - start


def _task(job: Job) -> Task:
    if job.size is None:
        return digits_task(job.num_steps, job.num_videos)
    return random_task(job.size, job.num_steps)


def _compare(
    result: Result,
    label: str,
    size: Size | None,
    num_steps: int,
    num_videos: int,
    rounds: int,
    progress: Progress,
) -> None:
    bar = progress.add_task(label, total=len(MAKERS) * (rounds + 1))
    workers: dict[str, Worker] = {}
    samples: Samples = {name: [] for name in MAKERS}
    try:
        for name in MAKERS:
            progress.update(bar, description=f"{label}: first generation (compiles), {name}")
            workers[name] = Worker(Generator, Job(name, num_steps, size, num_videos))
            workers[name].ask(GENERATE)
            progress.advance(bar)
        for turn in range(rounds):
            for name, worker in workers.items():
                progress.update(bar, description=f"{label}: round {turn + 1}, {name}")
                samples[name].append(worker.ask(GENERATE))
                progress.advance(bar)
        latents = {name: torch.from_numpy(w.ask(LATENTS)) for name, w in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()
        progress.remove_task(bar)
    for name in (OURS, OURS_LINEAR):
        task = _task(Job(name, num_steps, size, num_videos))
        allowed = allowed_speedup(task, OPTIONS[name])
        result.add(f"{label}: what the operations of {name} allow over no reuse", allowed)
        for other in OTHERS:
            seen = ratios(samples, other, name)
            result.add(f"{label}: speed-up of {name} / {other}", median(seen), samples=seen)
    for other in OTHERS[1:]:
        seen = ratios(samples, EAGER, other)
        result.add(f"{label}: for scale, {other} / {EAGER}", median(seen), samples=seen)
    for name, mine in latents.items():
        if name != EAGER:
            value = psnr(mine, latents[EAGER])
            result.add(f"{label}: PSNR against eager, {name}", value, "dB")
    same = psnr(latents[OURS], latents[HOOKS])
    result.add(f"{label}: PSNR of {OURS} against {HOOKS}", same, "dB")
