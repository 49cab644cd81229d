"""The fit of all weights together: Gauss-Newton on the results.

A change in a gap changes the latents at all later computed steps, so each derivative computes the
model there again. Derivatives take most of the model calls. So they are found once per round, and
several steps are made with them. After each step they are corrected by what it did (Broyden's
rule). They are of some prompts only. A step must also reduce the error of the others, so that the
weights do not fit the few prompts alone. If it does not, it is damped more (Levenberg and
Marquardt).

What is minimised is the mean logarithm of the squared errors, the mean PSNR.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from .fit import Fit, mean_log, unit
from .rehearsal import Outputs
from .row import Row

_PROBE = 0.05
_DAMPING, _LESS, _MORE = 1e-2, 1 / 3, 8.0
_LEAST, _MOST = 1e-4, 10.0
_TRIES = 8
_ENOUGH = 0.005
"""A round ends after a step that reduces the error by less than this, 0.02 dB."""

Places = Sequence[tuple[int, int]]


@dataclass(eq=False)
class _Point:
    """A row and where its generations end.

    Attributes:
        row: the weights.
        residuals: per prompt the result minus what it should be.
        outputs: per prompt what the model returned.
    """

    row: Row
    residuals: list[torch.Tensor]
    outputs: list[Outputs]

    @staticmethod
    def of(fit: Fit, row: Row) -> _Point:
        """Run the generations of a row."""
        residuals, outputs = fit.ends(row)
        return _Point(row, [each.double().flatten() for each in residuals], outputs)

    def error(self, start: int = 0) -> float:
        """The mean logarithm of the squared errors of the prompts from one on."""
        return mean_log([each.square().sum() for each in self.residuals[start:]])

    def moved(self, places: Places, change: Sequence[float]) -> Row:
        """The row with some numbers changed."""
        row = self.row
        for (stage, i), size in zip(places, change, strict=True):
            row = row.changed(stage, unit(i, row.count(stage), size))
        return row


def together(
    fit: Fit,
    row: Row,
    rounds: int = 1,
    on: int | None = None,
    keep: Callable[[Row, bool], object] = lambda row, is_round: None,
    may_try: Callable[[], bool] = lambda: True,
) -> Row:
    """The row after some rounds. It is never worse on the prompts of the fit.

    Args:
        fit: runs the generations.
        row: to begin with.
        rounds: how often derivatives are found, at most.
        on: the number of prompts whose derivatives are found; None: all.
        keep: called with every better row, and once more at the end of a round.
        may_try: asked before every step whether its generations may run.
    """
    places = [(stage, i) for stage in row.stages for i in range(row.count(stage))]
    here = _Point.of(fit, row)
    others = on if on is not None and on < len(here.residuals) else 0
    for _ in range(rounds if places else 0):
        slopes, start = _Slopes.at(fit.on(on), here, places), here.error()
        damping = _DAMPING
        for _ in range(_TRIES):
            if damping > _MOST or not may_try():
                break
            change = slopes.step(here.residuals, damping)
            there = _Point.of(fit, here.moved(places, change))
            gain = here.error() - there.error()
            if gain > 0 and there.error(others) < here.error(others):
                slopes.correct(change, here.residuals, there.residuals)
                here = there
                keep(here.row, False)
                if gain < _ENOUGH:
                    break
                damping = max(damping * _LESS, _LEAST)
            else:
                damping *= _MORE
        keep(here.row, True)
        if here.error() == start:
            break
    return here.row


def derivative_calls(row: Row) -> float:
    """Steps that compute for the derivatives of one prompt."""
    places = [(stage, i) for stage in row.stages for i in range(row.count(stage))]
    costs = [1.0 if guide is None else 0.5 for guide in row.guides]
    return sum(sum(costs[stage + 1 :]) for stage, _ in places)


@dataclass(eq=False)
class _Slopes:
    """Derivatives of the results by the numbers of a row.

    Attributes:
        of_prompts: one per prompt, ``[numbers, elements of the result]``; of the first prompts.
    """

    of_prompts: list[torch.Tensor]
    _scale: torch.Tensor = field(init=False)

    @staticmethod
    def at(fit: Fit, here: _Point, places: Places) -> _Slopes:
        """By finite differences. What the model returned before the change is replayed."""
        columns = []
        for stage, i in places:
            moved = here.row.changed(stage, unit(i, here.row.count(stage), _PROBE))
            at = here.row.computed[stage]
            ends, _ = fit.ends(moved, [each.until(at) for each in here.outputs[: len(fit.targets)]])
            columns.append([end.double().flatten() for end in ends])
        of_prompts = [
            ((torch.stack(rows) - residual) / _PROBE).float()
            for rows, residual in zip(zip(*columns, strict=True), here.residuals, strict=False)
        ]
        return _Slopes(of_prompts)

    def step(self, residuals: Sequence[torch.Tensor], damping: float) -> list[float]:
        """The change that reduces the mean logarithm of the squared residuals."""
        grams, slopes, squares = self._parts(residuals)
        self._scale = (grams / squares[:, None, None]).sum(0).diagonal() + 1e-30
        return _step(grams, slopes, squares, damping).tolist()

    def correct(
        self,
        change: Sequence[float],
        before: Sequence[torch.Tensor],
        after: Sequence[torch.Tensor],
    ) -> None:
        """Let the derivatives say of the change what it did."""
        step = torch.tensor(change, dtype=torch.float64)
        scaled = self._scale * step
        scaled = scaled / (scaled @ step).clamp(min=1e-30)
        for slopes, old, new in zip(self.of_prompts, before, after, strict=False):
            missed = new - old - step.to(slopes) @ slopes
            slopes += torch.outer(scaled.to(slopes), missed)

    def _parts(
        self, residuals: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Per prompt: products of the derivatives, their products with the residual, its square."""
        pairs = [(s.double(), r) for s, r in zip(self.of_prompts, residuals, strict=False)]
        grams = torch.stack([(s @ s.T).cpu() for s, _ in pairs])
        slopes = torch.stack([(s @ r).cpu() for s, r in pairs])
        squares = torch.stack([r.square().sum().cpu() for _, r in pairs])
        return grams, slopes, squares.clamp(min=1e-30)


def _step(
    grams: torch.Tensor, slopes: torch.Tensor, squares: torch.Tensor, damping: float
) -> torch.Tensor:
    gram = (grams / squares[:, None, None]).sum(0)
    slope = (slopes / squares[:, None]).sum(0)
    gram = gram + torch.diag(damping * gram.diagonal() + 1e-30)
    return torch.linalg.solve(gram, -slope)
