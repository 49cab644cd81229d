"""Work: the fit of one request, which may go on where an earlier run was interrupted."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pab_compile.errors import CalibrationError

from .choice import Candidate, candidates, chosen
from .fit import Fit, Target
from .full_runs import FullRuns
from .pairs import Pairing
from .rehearsal import Rehearsal
from .resume import Progress, Resume
from .row import Row, lengths_of
from .steps import choose_steps
from .together import derivative_calls, together

_log = logging.getLogger(__name__)

_FEWEST = 2
"""Prompts whose derivatives are found in any case."""
_SHARE, _ENOUGH = 2 / 3, 4
"""Share of the prompts whose derivatives are found, and their number at most."""
_STEPS_OF_A_ROUND = 4
"""Steps that a round is expected to try."""


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
        budget: full generations' worth of model calls that the fit may take.
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
    budget: float
    whole: Candidate | None = None
    calls_before: float = 0
    _resumed: Progress | None = None

    def find(
        self, steps: Sequence[int] | None, half_steps: Sequence[int], guidance: bool | None
    ) -> Candidate:
        """The steps to compute. They are fitted if the error is known."""
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
            return choose_steps(self.targets, lengths, min(count, len(lengths)))

        found = candidates(self._fit, self.targets, lengths, self.count, choose, self.pairing)
        guided = [each for each in found if each.pairing is not None]
        if guidance and not guided:
            raise CalibrationError(
                f"With {self.count} of {len(lengths)} steps no step can leave guidance out: two "
                "must compute both prompts, and one more compute one of them."
            )
        best = min(guided, key=lambda each: each.error) if guidance else chosen(found)
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
        is_fitted = self._resumed is not None or math.isfinite(found.error)
        row = found.row if is_fitted else fit.stage_by_stage(line)
        done = 0 if self._resumed is None else self._resumed.rounds
        if self._resumed is None:
            self._keep(row, found.pairing, 0)
        fit.advance = lambda: self.tell("fitting all weights together")
        best = row

        def keep(row: Row, is_round: bool) -> None:
            nonlocal best, done
            best, done = row, done + is_round
            self._keep(row, found.pairing, done)

        try:
            if rounds > done:
                one_try = len(self.targets) * self._cost(row)
                may_try = lambda: self._left >= one_try  # noqa: E731
                together(fit, row, rounds - done, self._affordable(row), keep, may_try)
        except KeyboardInterrupt:
            self.tell("interrupted: keeping the weights that were found")
        return best, line

    def _affordable(self, row: Row) -> int:
        """On how many prompts the derivatives of a round are found."""
        left = self._left - _STEPS_OF_A_ROUND * len(self.targets) * self._cost(row)
        number = math.floor(left / max(1, derivative_calls(row) * self.seen.calls_per_step))
        wanted = min(_ENOUGH, math.ceil(_SHARE * len(self.targets)))
        number = min(max(number, _FEWEST), wanted)
        if number < wanted:
            said = "The budget of %g full generations allows the derivatives of %d prompts."
            _log.info(said, self.budget, number)
        return number

    def _cost(self, row: Row) -> float:
        """Model calls of one generation."""
        return row.cost * self.seen.calls_per_step

    @property
    def _left(self) -> float:
        """Model calls that the budget still allows."""
        return self.budget * self.seen.num_steps * self.seen.calls_per_step - self._calls

    @property
    def _calls(self) -> float:
        return self.rehearsal.num_computed + self.calls_before

    def _keep(self, row: Row, pairing: Pairing | None, rounds: int) -> None:
        self.file.save(Progress(row, pairing, rounds, self._calls))

    def _judged(self, row: Row, pairing: Pairing | None) -> Candidate:
        fit = self._fit(self.targets, pairing)
        row = fit.stage_by_stage(row)
        return Candidate(row, pairing, fit.error(row))

    def _fit(self, targets: Sequence[Target], pairing: Pairing | None) -> Fit:
        advance = lambda: self.tell("fitting gap by gap")  # noqa: E731
        return Fit(self.rehearsal, targets, self.seen.num_steps, pairing, advance)
