"""What ``tune`` returns: a plan, and how it compares with what else costs as much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pab_compile.plans.plan import COMPUTE
from pab_compile.plans.plan_file import plan_text
from pab_compile.plans.step_plan import StepPlan, step_plan_to_json
from pab_compile.report.files import write_text
from pab_compile.report.table import listed
from pab_compile.report.text import ShownAsText, width, wrapped

from .score import Score

SAME, CONVERGED = "same", "converged"


@dataclass(frozen=True)
class Alternative:
    """One way to spend the model calls.

    Attributes:
        name: what it is.
        scores: reference -> PSNR on the prompts that were held out.
        gains: reference -> PSNR minus that of the plan, prompt by prompt.
    """

    name: str
    scores: Mapping[str, Score]
    gains: Mapping[str, Score]


@dataclass(frozen=True)
class Tuned(ShownAsText):
    """A plan that was tuned, and its alternatives.

    Attributes:
        found: the plan.
        alternatives: the plan first, then what costs as much.
        teacher: the reference that the plan was fitted to.
        num_prompts: number of prompts that it was fitted on.
        num_held_out: number of prompts that the scores are of.
        full_generations: model calls of the tuning, in full generations.
        note: why the plan leaves no guidance out, if it could have been wanted.
    """

    found: StepPlan
    alternatives: tuple[Alternative, ...]
    teacher: str
    num_prompts: int
    num_held_out: int
    full_generations: float
    note: str = ""

    @property
    def best(self) -> Alternative:
        """The alternative with the best score against the teacher's reference."""
        return max(self.alternatives, key=lambda each: each.scores[self.teacher].mean)

    @property
    def is_beaten(self) -> bool:
        """Whether an alternative is certainly better: the interval of its gain lies above 0."""
        gains = [each.gains[self.teacher] for each in self.alternatives[1:]]
        return any(gain.mean > gain.half_width for gain in gains)

    @property
    def plan(self) -> StepPlan:
        """The plan to use. It computes every step if an alternative is certainly better."""
        if not self.is_beaten:
            return self.found
        return replace(self.found, entries=(COMPUTE,) * self.found.num_steps, guidance=None)

    def to_json(self) -> dict[str, Any]:
        """The content of a plan file; see ``load_plan``."""
        scores = {
            each.name: {name: [s.mean, s.half_width] for name, s in each.scores.items()}
            for each in self.alternatives
        }
        made_by = {"function": "pab_compile.tune", "teacher": self.teacher}
        made_by |= {"prompts": self.num_prompts, "full_generations": self.full_generations}
        measured = {"prompts": self.num_held_out, "psnr": scores}
        return {**step_plan_to_json(self.plan), "made_by": made_by, "measured": measured}

    def save(self, path: str | Path) -> None:
        """Write a plan file, for ``options={"plan": path}`` or ``enable(pipe, path)``."""
        write_text(path, plan_text(self.to_json()))

    def __str__(self) -> str:
        names = list(self.alternatives[0].scores)
        head = ["each computes as much", *(f"PSNR, dB: {_REFERENCES[name]}" for name in names)]
        rows = [
            [each.name + (" *" if each is self.best else ""), *map(str, each.scores.values())]
            for each in self.alternatives
        ]
        others = "1 other" if self.num_held_out == 1 else f"{self.num_held_out} others"
        table = _columns([head, *rows])
        lines = [
            *self._cost(),
            f"Fitted on {self.num_prompts} prompts, measured on {others}.",
            *(table if max(map(len, table)) <= width() else listed(head, rows, width())),
            f"* is the best. Tuning took {self.full_generations:.1f} full generations.",
            *wrapped(self.note),
        ]
        if self.is_beaten:
            lines.append("The best is certainly better, so the plan computes every step.")
        return "\n".join(part for line in lines for part in wrapped(line, "") or [""])

    def _cost(self) -> list[str]:
        """What the plan computes, in words."""
        found = self.found
        speed, total = f"{found.num_steps / found.cost:.1f}x fewer", found.num_steps
        if found.guidance is None:
            return [f"{found.num_computed} of {total} steps compute ({speed})."]
        half = len(found.guidance.steps)
        return [
            f"{found.cost:g} of {total} model calls compute ({speed}): {found.num_computed - half} "
            f"steps compute both",
            f"prompts and {half} steps one of them.",
        ]


_REFERENCES = {SAME: "to all steps", CONVERGED: "to many more steps"}


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(most) for cell, most in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
