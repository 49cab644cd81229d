"""Work: the fit of one request, which may go on where an earlier run was interrupted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pab_compile.errors import CalibrationError

from .choice import JUDGES, Candidate, candidates
from .fit import Fit, Target
from .full_runs import FullRuns
from .pairs import Pairing
from .rehearsal import Rehearsal
from .resume import Progress, Resume
from .row import Row, lengths_of
from .steps import choose_steps


@dataclass(eq=False)
class Work:
    """The fit of one request.

    Attributes:
        rehearsal: runs the generations.
        targets: of the prompts of the fit.
        seen: the full runs.
        tell: called after every generation.
        file: what was found so far.
        count: the cost in whole steps.
        pairing: how a step carries two prompts, if one of them may be left out.
        whole: the best choice of steps that computes both prompts, if another one was chosen.
        calls_before: model calls of earlier runs of the same request.
    """

    rehearsal: Rehearsal
    targets: list[Target]
    seen: FullRuns
    tell: Callable[[str], None]
    file: Resume
    count: int
    pairing: Pairing | None
    whole: Candidate | None = None
    calls_before: int = 0
    _resumed: Progress | None = None

    def find(
        self, steps: Sequence[int] | None, half_steps: Sequence[int], guidance: bool | None
    ) -> Candidate:
        """The steps to compute. It is fitted if its error is known, on some prompts at least."""
        lengths = lengths_of(self.seen.timesteps)
        if (progress := self.file.load(lengths)) is not None:
            self._resumed, self.calls_before = progress, progress.calls
            return Candidate(progress.row, progress.pairing, math.inf)
        if steps is not None:
            pairings: list[Pairing | None] = [None]
            if self.pairing is not None and half_steps:
                pairings = list(self.pairing.choices)
            row = Row.of(lengths, steps, half_steps)
            tried = (
                [self._judged(row, pairing) for pairing in pairings] if len(pairings) > 1 else []
            )
            best = min(tried, key=lambda each: each.error).pairing if tried else pairings[0]
            return Candidate(row, best, math.inf)

        def choose(count: int) -> list[int]:
            return choose_steps(self.seen.own, lengths, min(count, len(lengths)))

        if self.pairing is None:
            return Candidate(Row.of(lengths, choose(self.count)), None, math.inf)
        found = candidates(self._fit, self.targets, lengths, self.count, choose, self.pairing)
        guided = [each for each in found if each.pairing is not None]
        if guidance and not guided:
            raise CalibrationError(
                f"With {self.count} of {len(lengths)} steps no step can leave guidance out: two "
                "must compute both prompts, and one more compute one of them."
            )
        best = min(guided if guidance else found, key=lambda each: each.error)
        self.whole = found[0] if best is not found[0] else None
        return best

    def refine(self, found: Candidate, rounds: int) -> tuple[Row, Row]:
        """The weights fitted on all prompts, and the row of the line at the same steps."""
        halves = [
            step
            for step, guide in zip(found.row.computed, found.row.guides, strict=True)
            if guide is not None
        ]
        line = Row.of(found.row.lengths, found.row.computed, halves)
        fit = self._fit(self.targets, found.pairing)
        is_fitted = len(self.targets) <= JUDGES and math.isfinite(found.error)
        is_fitted = is_fitted or self._resumed is not None
        row = found.row if is_fitted else fit.stage_by_stage(line)
        done = 0 if self._resumed is None else self._resumed.rounds
        if self._resumed is None:
            self._keep(row, found.pairing, 0)
        fit.advance = lambda: self.tell("fitting all weights together")
        best = row

        def keep(row: Row) -> None:
            nonlocal best, done
            best, done = row, done + 1
            self._keep(row, found.pairing, done)

        try:
            if rounds > done:
                fit.together(row, rounds - done, keep)
        except KeyboardInterrupt:
            self.tell("interrupted: keeping the weights that were found")
        return best, line

    def _keep(self, row: Row, pairing: Pairing | None, rounds: int) -> None:
        calls = self.rehearsal.num_computed + self.calls_before
        self.file.save(Progress(row, pairing, rounds, calls))

    def _judged(self, row: Row, pairing: Pairing | None) -> Candidate:
        fit = self._fit(self.targets, pairing)
        row = fit.stage_by_stage(row)
        return Candidate(row, pairing, fit.error(row))

    def _fit(self, targets: Sequence[Target], pairing: Pairing | None) -> Fit:
        advance = lambda: self.tell("fitting gap by gap")  # noqa: E731
        return Fit(self.rehearsal, targets, self.seen.num_steps, pairing, advance)
