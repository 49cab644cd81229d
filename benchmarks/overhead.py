"""Benchmark `overhead`: what a step does beside the model's operations, counted.

These are counts, so they do not depend on the speed of the machine.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import Progress
from torch.profiler import ProfilerActivity, profile

import pab_compile

from .latte import SMALL, TINY, Size
from .results import Result, Target
from .sampling import Task, generate, random_task
from .variants import STOCK

OURS = {"ranges": "linear3"}
COPIES = ("aten::copy_", "aten::clone")
READ = "aten::_local_scalar_dense"


@dataclass
class Counts:
    """What happened in a step.

    Attributes:
        python: calls of Python functions, inside of the model's call.
        allocations: blocks of memory that were taken.
        copies: copies of tensors.
        reads: values that Python read from tensors.
    """

    python: int = 0
    allocations: int = 0
    copies: int = 0
    reads: int = 0


WORDS = {
    "python": "Python calls",
    "allocations": "allocations",
    "copies": "copies of tensors",
    "reads": "reads of values",
}


def run(result: Result, quick: bool, progress: Progress) -> None:
    """Counts during one generation with compiled pieces, per kind of step."""
    layers, num_steps = (4, 6) if quick else (28, 12)
    size = TINY if quick else Size(num_layers=layers, **SMALL)
    result.settings = {"steps": num_steps, "layers": size.num_layers, "plan": "linear3"}
    bar = progress.add_task("counting", total=6)
    task = random_task(size, num_steps)
    counts: dict[str, list[Counts]] = {}
    for name, options in (
        (STOCK, {}),
        ("pab", {"backend": "pab", "options": OURS}),
    ):
        compiled: Any = torch.compile(task.model, **options)
        for _ in range(2):  # compiles, and traces again where a second call shows more
            _generation(task, compiled)
            progress.advance(bar)
        counts[name] = _counted(task, compiled)
        progress.advance(bar)
    strip = pab_compile.stats(compiled).timeline.strips()[0]
    progress.remove_task(bar)
    kinds = {
        STOCK: counts[STOCK][1:],
        "pab, a step that computes": _of_kind(counts["pab"], strip, "C"),
        "pab, a step that predicts": _of_kind(counts["pab"], strip, "p"),
    }
    for field, words in WORDS.items():
        for name, seen in kinds.items():
            values = [getattr(each, field) for each in seen]
            target = Target("==", 0) if field == "reads" and name != STOCK else None
            result.add(f"{words} per step: {name}", statistics.median(values), "", target)
    result.notes.append(
        "Of one generation after two others; the first step is left out, since it begins the "
        "generation. Allocations, copies and reads are those of torch's profiler, and Python calls "
        "those of `sys.setprofile`, with those of Dynamo and of the compiled code."
    )


def _of_kind(counts: list[Counts], strip: str, letter: str) -> list[Counts]:
    pairs = list(zip(counts, strip, strict=True))[1:]
    return [each for each, shown in pairs if shown == letter]


def _generation(task: Task, call: Callable[..., Any]) -> None:
    pab_compile.reset()
    generate(task, call)


def _counted(task: Task, compiled: Callable[..., Any]) -> list[Counts]:
    """One generation, twice: Python calls are counted apart from what the profiler counts."""
    counts: list[Counts] = [Counts() for _ in range(task.num_steps)]
    steps = iter(counts)

    def with_python(**inputs: Any) -> Any:
        now = next(steps)

        def note(_frame: Any, event: str, _arg: Any) -> None:
            now.python += event == "call"

        sys.setprofile(note)
        try:
            return compiled(**inputs)
        finally:
            sys.setprofile(None)

    _generation(task, with_python)
    steps = iter(counts)

    def with_profiler(**inputs: Any) -> Any:
        now = next(steps)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            outputs = compiled(**inputs)
        for event in seen.events():
            now.copies += event.name in COPIES
            now.reads += event.name == READ
        memory = seen.profiler.kineto_results.events()
        now.allocations = sum(event.name() == "[memory]" and event.nbytes() > 0 for event in memory)
        return outputs

    _generation(task, with_profiler)
    return counts
