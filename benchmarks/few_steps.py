"""Benchmark `few_steps`: what reuse is worth where there are few steps; the demo's Latte.

Beside the plans stands what they compete with: the same model without reuse at fewer steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from rich.progress import Progress

import pab_compile
from pab_compile.tuning.score import psnr

from .examples import digits
from .results import Result


class At:
    """A plan that computes all sites at given steps; all may change between runs."""

    def __init__(self) -> None:
        self.computed: frozenset[int] = frozenset()
        self.order = 0

    def __call__(self, site: Any, step: int, *_: Any) -> int | None:
        return None if step in self.computed else self.order


Steps = Callable[[int], Iterable[int]]
PLANS: dict[str, tuple[Steps, int]] = {
    "every 2nd step, repeat": (lambda n: range(0, n, 2), 0),
    "every 2nd step, linear": (lambda n: range(0, n, 2), 1),
    "every 3rd step, linear": (lambda n: range(0, n, 3), 1),
    "every 2nd step of the later half, linear": (
        lambda n: {*range(n // 2), *range(n // 2, n, 2)},
        1,
    ),
    "all but the last step, linear": (lambda n: range(n - 1), 1),
}


def run(result: Result, quick: bool, progress: Progress) -> None:
    """Generates with every plan and without reuse at 4, 8 and 12 steps."""
    num_videos, counts = (2, (4, 8)) if quick else (8, (4, 8, 12))
    result.settings = {"videos": num_videos, "steps": counts, "inner": "eager"}
    trained, plan = digits.load(), At()
    model = torch.compile(trained.model, backend="pab", options={"inner": "eager", "plan": plan})
    prompts, noise = torch.arange(num_videos), digits.make_noise(num_videos)
    bar = progress.add_task("generations", total=len(counts) * (len(PLANS) + 3))

    def generate(num_steps: int, call: Any = None) -> torch.Tensor:
        pab_compile.reset()
        videos = digits.generate(trained, prompts, noise, model=call, num_steps=num_steps)
        progress.advance(bar)
        return videos

    for num_steps in counts:
        reference = generate(num_steps)
        for name, (steps, plan.order) in PLANS.items():
            plan.computed = frozenset(steps(num_steps))
            value = psnr(generate(num_steps, model), reference)
            found = pab_compile.explain(model)
            reusable = sum(site.flops for site in found.sites if site.range is None)
            saved = reusable / found.total_flops * (1 - len(plan.computed) / num_steps)
            label = f"{num_steps} steps, {name}"
            result.add(f"{label}: FLOPs without reuse / with", 1 / (1 - saved))
            result.add(f"{label}: PSNR against no reuse", value, "dB")
        for fewer in (3 * num_steps // 4, num_steps // 2):
            label = f"{num_steps} steps, no reuse but {fewer} steps"
            result.add(f"{label}: FLOPs of {num_steps} / {fewer}", num_steps / fewer)
            value = psnr(generate(fewer), reference)
            result.add(f"{label}: PSNR against {num_steps} steps", value, "dB")
    progress.remove_task(bar)
    result.notes.append(
        "All sites, MLPs too, are treated alike. FLOPs by `explain`; pieces run eagerly: this says "
        "nothing about seconds."
    )
