"""Benchmark `cold_start`: the first video of a process, uncompiled, compiled, compiled beside it.

`python -m benchmarks.cold_start '{"variant": "eager", "num_steps": 30}'` is what the parent starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from .latte import CPU_DEEP, TINY, Size
from .results import Result, Target
from .timing import Samples, median, ratios

ROOT = Path(__file__).parents[1]
EAGER, STOCK, OURS = "eager", "stock torch.compile", "pab"
BESIDE = 'pab, warm="background"'
OPTIONS: dict[str, dict[str, Any]] = {
    OURS: {"ranges": "linear3"},
    BESIDE: {"ranges": "linear3", "warm": "background"},
}


@dataclass(frozen=True)
class First:
    """What one process saw.

    Attributes:
        seconds: from `torch.compile(...)` to the end of the first video.
        first_step: of these, to the end of the first step.
        second: seconds of the second video, when all that was begun is compiled.
    """

    seconds: float
    first_step: float
    second: float


def run(result: Result, quick: bool, progress: Progress) -> None:
    """Generates the first video of fresh processes with empty caches, in turns."""
    size, num_steps, rounds = (TINY, 6, 1) if quick else (CPU_DEEP, 30, 3)
    result.settings = {"steps": num_steps, "rounds": rounds, "size": size.to_json()}
    names = (EAGER, STOCK, OURS, BESIDE)
    task = progress.add_task("first videos", total=rounds * len(names))
    firsts: dict[str, list[First]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            firsts[name].append(_first(name, size, num_steps))
            progress.advance(task)
    progress.remove_task(task)
    seconds: Samples = {name: [each.seconds for each in seen] for name, seen in firsts.items()}
    for name in names[1:]:
        seen = ratios(seconds, name, EAGER)
        target = Target("<=", 1.1) if name == BESIDE else None
        label = f"first video of a process: {name} / {EAGER}"
        result.add(label, median(seen), target=target, samples=seen)
    # What comes before the first step ends does not grow with the video.
    steps = [each.seconds / num_steps for each in firsts[EAGER]]
    for name in (OURS, BESIDE):
        waits = [a.first_step / b for a, b in zip(firsts[name], steps, strict=True)]
        result.add(f"end of the first step: {name}", median(waits), "eager steps", samples=waits)
    later = [b.second / a.second for a, b in zip(firsts[EAGER], firsts[BESIDE], strict=True)]
    result.add(f"second video: {BESIDE} / {EAGER}", median(later), samples=later)
    result.notes.append(
        "Every video is made in a process of its own with an empty TORCHINDUCTOR_CACHE_DIR. The "
        "first step waits for Dynamo, the capture and the passes, which nothing can run beside."
    )


def _first(variant: str, size: Size, num_steps: int) -> First:
    job = json.dumps({"variant": variant, "num_steps": num_steps, "size": size.to_json()})
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        command = [sys.executable, "-m", "benchmarks.cold_start", job]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(f"first video with {job} failed:\n{done.stderr[-2000:]}")
    return First(**json.loads(done.stdout.splitlines()[-1]))


def _run(job: dict[str, Any]) -> First:
    import pab_compile

    from .sampling import generate, random_task

    task = random_task(Size(**job["size"]), job["num_steps"])
    name, ends = job["variant"], []
    start = time.perf_counter()
    call: Any = task.model
    if name == STOCK:
        call = torch.compile(task.model)
    elif name != EAGER:
        call = torch.compile(task.model, backend="pab", options=OPTIONS[name])
    generate(task, call, lambda _: ends.append(time.perf_counter()))
    seconds = time.perf_counter() - start
    if name == BESIDE:
        from pab_compile.compile.background import wait_for_background

        wait_for_background()
    pab_compile.reset()
    again = time.perf_counter()
    generate(task, call)
    return First(seconds, ends[1] - start, time.perf_counter() - again)


if __name__ == "__main__":
    print(json.dumps(asdict(_run(json.loads(sys.argv[1])))))
