"""The fit of weights in closed loop, stage by stage.

From the first gap on, every generation runs with the weights found so far up to the end of the gap.
There its latents are an affine function of the gap's weights, whatever linear sampler runs. So a
few replayed generations give the function, and least squares the weights. If the stage computes one
of two prompts, the weights of its guidance differences multiply those of the gap. Then the function
is linearised, twice.

What is minimised is the mean logarithm of the squared errors, the mean PSNR (``least_log``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from pab_compile.errors import CalibrationError

from .least_log import least_log
from .pairs import Pairing
from .rehearsal import Outputs, Rehearsal, Run
from .row import Row

_PROBE = 0.5
_CURVED_ROUNDS = 2


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

    def on(self, number: int | None) -> Fit:
        """The fit of the first prompts only."""
        return replace(self, targets=self.targets[:number], _outputs=[])

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
        residuals, _ = self.ends(row, self._outputs)
        return mean_log([residual.square().sum() for residual in residuals])

    def _fitted(self, row: Row, stage: int) -> list[float]:
        """The change of a stage's weights that brings the latents at its end nearest."""
        end, count = row.end(stage), row.count(stage)
        grams, products, squares = [], [], []
        for number, target in enumerate(self.targets):
            goal = target.latents[end] if end < self.num_steps else target.result
            start = self._at(row, number, end)
            probes = [row.changed(stage, unit(i, count, _PROBE)) for i in range(count)]
            moves = [(self._at(probe, number, end) - start) / _PROBE for probe in probes]
            missing = _difference(goal, start, target)
            basis = torch.stack([move.double().flatten() for move in moves])
            grams.append(basis @ basis.T)
            products.append(basis @ missing.double().flatten())
            squares.append(missing.double().square().sum())
        return least_log(grams, products, squares)

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

    def ends(
        self, row: Row, known: Sequence[Outputs] | None = None
    ) -> tuple[list[torch.Tensor], list[Outputs]]:
        """Per prompt: the result minus what it should be, and the computed outputs.

        Args:
            row: the weights.
            known: outputs that the weights do not change, which are replayed.
        """
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


def unit(place: int, count: int, size: float) -> list[float]:
    """Zeros, and one number that is not."""
    return [size if i == place else 0.0 for i in range(count)]


def mean_log(squares: Sequence[torch.Tensor]) -> float:
    """The mean logarithm."""
    logs = [math.log(max(float(square), 1e-30)) for square in squares]
    return sum(logs) / len(logs)
