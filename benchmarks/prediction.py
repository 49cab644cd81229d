"""Benchmark `prediction`: repeat, line or parabola, in steps or in timesteps; demo model."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from rich.progress import Progress

from pab_compile.tuning.score import psnr

from .results import Result
from .sampling import digits_task, euler, generate

WINDOW = (0.1, 1.0)
SHIFTS = (1.0, 3.0, 7.0)
"""Of the flow-matching schedule; at 1 the steps are even, so that steps and timesteps are one."""
SPANS = (3, 5)
ORDERS = {0: "repeat", 1: "linear", 2: "quadratic"}


class Everywhere:
    """A plan that computes every site at every `span`-th step; both may change between runs."""

    def __init__(self) -> None:
        self.span, self.order = 1, 0

    def __call__(self, site: Any, step: int, num_steps: int, timestep: float) -> int | None:
        inside = WINDOW[0] <= step / num_steps < WINDOW[1]
        return self.order if inside and step % self.span else None


def run(result: Result, quick: bool, progress: Progress) -> None:
    """Generates with every order, distance and coordinate, on even and on uneven schedules."""
    num_steps, num_videos, spans = (12, 2, (3,)) if quick else (30, 4, SPANS)
    result.settings = {"steps": num_steps, "videos": num_videos, "window": WINDOW}
    task, plan = digits_task(num_steps, num_videos), Everywhere()
    calls: dict[str, Callable[..., Any]] = {
        predict_in: torch.compile(
            task.model,
            backend="pab",
            options={"plan": plan, "inner": "eager", "predict_in": predict_in},
        )
        for predict_in in ("step", "timestep")
    }
    ways = [("step", 0), *itertools.product(calls, (1, 2))]
    bar = progress.add_task("generations", total=len(SHIFTS) * (1 + len(spans) * len(ways)))
    for shift in SHIFTS:
        task = replace(task, sampler=euler(num_steps, shift))
        reference = generate(task, task.model)
        progress.advance(bar)
        for plan.span, (predict_in, plan.order) in itertools.product(spans, ways):
            where = f" in {predict_in}s" if plan.order else ""
            label = f"shift {shift:g}, every {plan.span} steps, {ORDERS[plan.order]}{where}"
            value = psnr(generate(task, calls[predict_in]), reference)
            result.add(f"{label}: PSNR against uncached", value, "dB")
            progress.advance(bar)
    progress.remove_task(bar)
    result.notes.append(
        "All sites, MLPs too, are computed every so many steps. At shift 1 the timesteps are even, "
        "and both coordinates say the same. Pieces run eagerly: this is about numbers, not speed."
    )
