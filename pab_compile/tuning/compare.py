"""Comparison: a tuned plan beside what else costs as much, on prompts that were held out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .full_runs import FullRuns, finite
from .pairs import Pairing
from .row import Row
from .score import Score, psnr
from .tuned import Alternative


def compare(
    seen: FullRuns,
    held_out: Sequence[tuple[Any, Mapping[str, torch.Tensor]]],
    rows: Mapping[str, tuple[Row, Pairing | None]],
) -> tuple[Alternative, ...]:
    """The alternatives on prompts that were held out.

    Args:
        seen: makes full runs.
        held_out: prompts, with what their results should be by the name of the teacher.
        rows: what to compare, by name. The first one is the tuned plan.
    """
    tuned, _ = next(iter(rows.values()))
    count, total = math.ceil(tuned.cost), seen.num_steps
    found: dict[str, dict[str, list[float]]] = {}
    for prompt, references in held_out:
        ours, *others = ((name, _rerun(seen, prompt, *row)) for name, row in rows.items())
        fewer = f"{count} of {total} steps", seen.fewer(prompt, count)
        results = dict([ours, fewer, *others])
        for name, reference in references.items():
            for label, result in results.items():
                values = found.setdefault(label, {}).setdefault(name, [])
                values.append(psnr(result, reference))
    plan = next(iter(found.values()))
    return tuple(
        Alternative(
            label,
            {name: Score.of(values) for name, values in scores.items()},
            {
                name: Score.of([a - b for a, b in zip(values, plan[name], strict=True)])
                for name, values in scores.items()
            },
        )
        for label, scores in found.items()
    )


def _rerun(seen: FullRuns, prompt: Any, row: Row, pairing: Pairing | None) -> torch.Tensor:
    guidance = pairing.plan(row) if pairing is not None else None
    run = seen.rehearsal.run(prompt, seen.num_steps, row.entries(), guidance=guidance)
    seen.tell("measuring")
    return finite(run, prompt)
