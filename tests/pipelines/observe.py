"""What one line on a pipeline does: against module hooks, and how the clock sees its steps."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

import pab_compile

from .case import Case
from .oracle import Oracle, Rule

RANGES = {"full": 2, "joint": 2, "spatial": 2, "temporal": 3, "cross": 3}
WINDOW = (0.1, 0.9)
NUM_STEPS = 10
OPTIONS = {"inner": "eager", "ranges": RANGES, "window": WINDOW}


@dataclass(frozen=True)
class Generation:
    """One generation of the compiled pipeline, and the same one by hooks.

    Attributes:
        actual: latents of the compiled pipeline.
        expected: latents by hooks.
        stats: what the compiled transformer did.
        oracle: what the hooks did.
        reads: step -> how often a value was read from the device to find generation and lane.
    """

    actual: torch.Tensor
    expected: torch.Tensor
    stats: pab_compile.RunStats
    oracle: Oracle
    reads: Counter[int]


def by_steps(case: Case, num_steps: int = NUM_STEPS) -> Rule:
    """The rule of every pipeline: the number of steps is known from the first call on."""
    return Rule(RANGES, WINDOW, num_steps, first_reusable=int(bool(case.stepping)))


def generate(case: Case, pipe: Any, rule: Rule, seed: int = 5) -> Generation:
    """Run a pipeline with a compiled transformer, and a copy of it with hooks."""
    reads: Counter[int] = Counter()
    step = 0

    def end_step(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> Any:
        nonlocal step
        step = (index + 1) % pipe.num_timesteps
        return tensors

    def count() -> None:
        reads[step] += 1

    def run() -> tuple[torch.Tensor, pab_compile.RunStats]:
        with case.dit.switched():
            latents = case.generate(pipe, NUM_STEPS, seed, **case.callback(end_step))
        return latents, pab_compile.stats(pipe.transformer)

    # The schedule is looked for in all callers. In a thread these are the pipeline's only.
    with _counting_reads(count), ThreadPoolExecutor(1) as thread:
        actual, stats = thread.submit(run).result()
    hooked = case.build()
    oracle = Oracle(hooked.transformer, case.dit, rule)
    expected = case.generate(hooked, NUM_STEPS, seed, **case.callback(oracle.end_step))
    return Generation(actual, expected, stats, oracle, reads)


@contextmanager
def _counting_reads(count: Callable[[], None]) -> Iterator[None]:
    """Call ``count`` whenever the library looks at a tensor's values."""

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def read(*args: Any, **kwargs: Any) -> Any:
            if "pab_compile" in sys._getframe(1).f_globals["__name__"]:
                count()
            return real(*args, **kwargs)

        return read

    with ExitStack() as stack:
        for owner, name in ((torch.Tensor, "tolist"), (torch.Tensor, "item"), (torch, "equal")):
            stack.enter_context(mock.patch.object(owner, name, counted(getattr(owner, name))))
        yield


def row(case: Case, first: Generation) -> str:
    """A line of the table, from the first generation."""
    seen = first.oracle.timesteps
    one = seen[: len(seen) // case.generations]
    one_table = one[0].untyped_storage().data_ptr() == one[-1].untyped_storage().data_ptr()
    clock = "a view into the table" if one_table else "computed"
    start = first.reads[0] / case.generations
    later = (first.reads.total() - first.reads[0]) / case.generations / (NUM_STEPS - 1)
    cells = [
        case.name,
        case.pipeline_name,
        clock,
        len(seen) // NUM_STEPS // case.generations,
        first.stats.lanes,
        f"{start:g}",
        f"{later:g}",
    ]
    return f"| {' | '.join(map(str, cells))} |"
