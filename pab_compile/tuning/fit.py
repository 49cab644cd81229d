"""The fit of weights in closed loop: stage by stage, then all together.

*Stage by stage*: from the first gap on, every generation runs with the weights found so far up to
the end of the gap. There its latents are an affine function of the gap's weights, whatever linear
sampler runs. So a few replayed generations give the function, and least squares the weights. If the
stage computes one of two prompts, the weights of its guidance differences multiply those of the
gap. Then the function is linearised, twice.

*All together*: Gauss-Newton on the results. A change in a gap changes the latents at all later
computed steps, so each derivative computes the model there again.

Both minimise the mean logarithm of the squared errors, the mean PSNR. Plain least squares would let
the worst prompt decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pab_compile.errors import CalibrationError

from .pairs import Pairing
from .rehearsal import Outputs, Rehearsal, Run
from .row import Row

_PROBE = 0.5
_FINE_PROBE = 0.05
_ROUNDS = 30
_CURVED_ROUNDS = 2
_RIDGE = 1e-8
_DAMPING = 1e-3
_HALVINGS = 4


@dataclass(eq=False)
class Target:
    """What one prompt's generation should be.

    Attributes:
        prompt: for ``generate``.
        latents: at the begin of each step.
        result: what the generation should return.
    """

    prompt: Any
    latents: list[torch.Tensor]
    result: torch.Tensor


@dataclass(eq=False)
class Fit:
    """A fit while it goes on.

    Args:
        rehearsal: runs the generations.
        targets: one per prompt.
        num_steps: of a generation.
        pairing: how a step carries two prompts, for rows that leave one of them out.
        advance: called after every generation.
    """

    rehearsal: Rehearsal
    targets: Sequence[Target]
    num_steps: int
    pairing: Pairing | None = None
    advance: Callable[[], object] = lambda: None
    _outputs: list[Outputs] = field(default_factory=list)

    def stage_by_stage(self, row: Row) -> Row:
        """The row with the weights of all gaps fitted, one after the other."""
        self._outputs = [Outputs() for _ in self.targets]
        for stage in row.stages:
            is_curved = row.has_gap(stage) and row.guides[stage] is not None
            for _ in range(_CURVED_ROUNDS if is_curved else 1):
                row = row.changed(stage, self._fitted(row, stage))
        return row

    def error(self, row: Row) -> float:
        """The mean logarithm of the squared errors of the row that was fitted stage by stage."""
        residuals, _ = self._ends(row, self._outputs)
        return _mean_log([residual.square().sum() for residual in residuals])

    def together(
        self, row: Row, rounds: int = 1, keep: Callable[[Row], object] = lambda row: None
    ) -> Row:
        """The row after some rounds of Gauss-Newton. It is never worse on these prompts.

        Args:
            row: to begin with.
            rounds: at most so many.
            keep: called with the row after every round.
        """
        places = [(stage, i) for stage in row.stages for i in range(row.count(stage))]
        residuals, outputs = self._ends(row)
        best = _mean_log([r.square().sum() for r in residuals])
        for _ in range(rounds):
            columns = []
            for stage, i in places:
                moved = row.changed(stage, _unit(i, row.count(stage), _FINE_PROBE))
                at = row.computed[stage]
                ends, _ = self._ends(moved, [each.until(at) for each in outputs])
                columns.append(
                    [(e - r) / _FINE_PROBE for e, r in zip(ends, residuals, strict=True)]
                )
            step = _gauss_newton(residuals, columns)
            for _ in range(_HALVINGS):
                candidate = row
                for (stage, i), size in zip(places, step, strict=True):
                    candidate = candidate.changed(stage, _unit(i, row.count(stage), size))
                ends, found = self._ends(candidate)
                error = _mean_log([r.square().sum() for r in ends])
                if error < best:
                    row, best, residuals, outputs = candidate, error, ends, found
                    keep(row)
                    break
                step = [size / 2 for size in step]
            else:
                break
        return row

    def _fitted(self, row: Row, stage: int) -> list[float]:
        """The change of a stage's weights that brings the latents at its end nearest."""
        end, count = row.end(stage), row.count(stage)
        grams, products, squares = [], [], []
        for number, target in enumerate(self.targets):
            goal = target.latents[end] if end < self.num_steps else target.result
            start = self._at(row, number, end)
            probes = [row.changed(stage, _unit(i, count, _PROBE)) for i in range(count)]
            moves = [(self._at(probe, number, end) - start) / _PROBE for probe in probes]
            missing = _difference(goal, start, target)
            basis = torch.stack([move.double().flatten() for move in moves])
            grams.append(basis @ basis.T)
            products.append(basis @ missing.double().flatten())
            squares.append(missing.double().square().sum())
        return _least_log(grams, products, squares)

    def _at(self, row: Row, number: int, end: int) -> torch.Tensor:
        """The latents of a prompt at a step, or its result."""
        run = self._run(row, number, self._outputs[number], end)
        reached = run.latents[-1] if run.result is None else run.result
        if not bool(reached.isfinite().all()):
            raise CalibrationError(
                f"The generation of {self.targets[number].prompt!r} is not finite at step {end} of "
                f"{self.num_steps} while its plan is fitted. Leave the prompt out, let more steps "
                "compute, or use another dtype."
            )
        return reached.float()

    def _ends(
        self, row: Row, known: Sequence[Outputs] | None = None
    ) -> tuple[list[torch.Tensor], list[Outputs]]:
        """Per prompt: the result minus what it should be, and the computed outputs."""
        known = known or [Outputs() for _ in self.targets]
        runs = [self._run(row, n, each, None) for n, each in enumerate(known)]
        pairs = zip(runs, self.targets, strict=True)
        ends = [-_difference(t.result, _result(run), t) for run, t in pairs]
        return ends, [run.outputs for run in runs]

    def _run(self, row: Row, number: int, known: Outputs, end: int | None) -> Run:
        stop = None if end is None or end >= self.num_steps else end
        target = self.targets[number]
        guidance = self.pairing.plan(row) if self.pairing is not None else None
        run = self.rehearsal.run(
            target.prompt, self.num_steps, row.entries(), known, stop, guidance
        )
        self.advance()
        return run


def _result(run: Run) -> torch.Tensor:
    assert run.result is not None, "the generation was stopped"
    return run.result


def _difference(goal: torch.Tensor, found: torch.Tensor, target: Target) -> torch.Tensor:
    if goal.shape != found.shape:
        raise CalibrationError(
            f"The generation of {target.prompt!r} gave {list(goal.shape)} once and "
            f"{list(found.shape)} another time. generate must do the same at every run."
        )
    return goal.float() - found.float()


def _unit(place: int, count: int, size: float) -> list[float]:
    return [size if i == place else 0.0 for i in range(count)]


def _mean_log(squares: Sequence[torch.Tensor]) -> float:
    logs = [math.log(max(float(square), 1e-30)) for square in squares]
    return sum(logs) / len(logs)


def _least_log(
    grams: Sequence[torch.Tensor], products: Sequence[torch.Tensor], squares: Sequence[torch.Tensor]
) -> list[float]:
    """The numbers that minimise the mean logarithm of squared errors.

    It is least squares with each prompt weighted by 1 / its squared error, repeated.

    Args:
        grams: per prompt the products of the moves, ``[n, n]``.
        products: per prompt the products of the moves with what is missing, ``[n]``.
        squares: per prompt the square of what is missing.
    """
    change = torch.zeros_like(products[0])
    for _ in range(_ROUNDS):
        errors = [
            (square - 2 * change @ product + change @ gram @ change).clamp(min=1e-9 * square)
            for gram, product, square in zip(grams, products, squares, strict=True)
        ]
        weights = [1 / error.clamp(min=1e-30) for error in errors]
        gram = torch.stack([w * g for w, g in zip(weights, grams, strict=True)]).sum(0)
        product = torch.stack([w * p for w, p in zip(weights, products, strict=True)]).sum(0)
        gram = gram + _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        change = torch.linalg.lstsq(gram.cpu(), product.cpu()[:, None]).solution[:, 0].to(product)
    return change.tolist()


def _gauss_newton(
    residuals: Sequence[torch.Tensor], columns: Sequence[Sequence[torch.Tensor]]
) -> list[float]:
    """The step that reduces the mean logarithm of squared residuals.

    Args:
        residuals: one per prompt.
        columns: per number the derivative of every residual.
    """
    count = len(columns)
    gram = torch.zeros(count, count, dtype=torch.float64)
    slope = torch.zeros(count, dtype=torch.float64)
    for number, residual in enumerate(residuals):
        moves = torch.stack([column[number].double().flatten() for column in columns])
        weight = 1 / residual.double().square().sum().clamp(min=1e-30)
        gram += (weight * (moves @ moves.T)).cpu()
        slope += (weight * (moves @ residual.double().flatten())).cpu()
    gram += torch.diag(_DAMPING * gram.diagonal() + 1e-30)
    return torch.linalg.solve(gram, -slope).tolist()
