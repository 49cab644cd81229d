"""The fit of all weights together: what derivatives of some prompts say must be good for others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from pab_compile.tuning.rehearsal import Outputs
from pab_compile.tuning.row import Row
from pab_compile.tuning.together import derivative_calls, together

START = Row.of([1.0] * 5, [0, 2])


def numbers_of(row: Row) -> torch.Tensor:
    """The three numbers of a row: one in its first gap, and two in its second one."""
    return torch.tensor([number for change in row.changes for number in change])


class Wanted:
    """A fit whose prompts each want some numbers; ``bend`` makes results curved."""

    def __init__(self, wanted: Sequence[Sequence[float]], bend: float = 0.0) -> None:
        self.targets, self.bend, self.runs = list(wanted), bend, 0

    def on(self, number: int | None) -> Wanted:
        """The first prompts."""
        return Wanted(self.targets[:number], self.bend)

    def ends(self, row: Row, known: Any = None) -> tuple[list[torch.Tensor], list[Outputs]]:
        """What results miss."""
        self.runs += 1
        x = numbers_of(row)
        x = x + self.bend * x.square()
        return [x - torch.tensor(w) for w in self.targets], [Outputs() for _ in self.targets]


def test_curved_results_are_met_with_the_derivatives_of_one_round() -> None:
    fit: Any = Wanted([(0.5, -0.2, 0.3)] * 3, bend=0.3)
    found = numbers_of(together(fit, START, on=2))
    torch.testing.assert_close(
        found + 0.3 * found**2, torch.tensor([0.5, -0.2, 0.3]), atol=1e-3, rtol=0
    )
    assert fit.runs < 10


def test_no_step_is_tried_that_may_not() -> None:
    fit: Any = Wanted([(0.5, -0.2, 0.3)] * 3, bend=0.3)
    may_try = iter([True, False])
    together(fit, START, on=2, may_try=lambda: next(may_try))
    assert fit.runs == 2  # Where it begins, and one step. Derivatives run on fits of their own.


@pytest.mark.parametrize(
    ("others", "moves"), [((0.5, -0.2, 0.3), True), ((-1.0, 1.0, -1.0), False)]
)
def test_a_step_must_be_good_for_prompts_without_derivatives(
    others: tuple[float, ...], moves: bool
) -> None:
    fit: Any = Wanted([(0.5, -0.2, 0.3)] * 3 + [others])
    kept: list[bool] = []
    found = together(fit, START, on=3, keep=lambda _, is_round: kept.append(is_round))
    assert (found != START) == moves
    assert kept.count(True) == 1
    assert kept[-1]


def test_calls_for_derivatives_are_those_after_the_stage() -> None:
    # Three stages: 1 number before two more computed steps, 2 before one, 3 before none.
    assert derivative_calls(Row.of([1.0] * 6, [0, 2, 4])) == 1 * 2 + 2 * 1
    # A step with one of two prompts costs half, and has a number for its guidance difference.
    assert derivative_calls(Row.of([1.0] * 6, [0, 2, 4], [2])) == 1 * 1.5 + 3 * 1
