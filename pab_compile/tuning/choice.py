"""Which steps compute, and which of them compute one of two prompts only.

With the cost of ``n`` whole steps, ``f`` steps may compute both prompts and ``2 (n - f)`` one of
them. They alternate, as F H F H H. Each choice is fitted stage by stage on a few prompts, and the
one that ends nearest to the targets is taken. The same choice says which half of a batch computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .fit import Fit, Target
from .pairs import Pairing
from .row import Row

JUDGES = 4
"""Most prompts on which choices are compared."""
_WHOLE_SHARES = (0.7, 0.55)
"""Shares of the cost that whole steps may take, to try."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A fitted choice of steps.

    Attributes:
        row: it, fitted stage by stage.
        pairing: how a step carries two prompts; None if every computed step computes both.
        error: the mean logarithm of its squared errors.
    """

    row: Row
    pairing: Pairing | None
    error: float


def halves_of(steps: Sequence[int], whole: int) -> list[int]:
    """The steps that compute one of two prompts, if so many compute both.

    Args:
        steps: that compute.
        whole: how many of them compute both prompts.
    """
    both = [step for number, step in enumerate(steps) if number % 2 == 0][:whole]
    missing = whole - len(both)
    if missing > 0:
        both += [step for step in steps if step not in both][:missing]
    return [step for step in steps if step not in both]


def splits(
    count: int, choose: Callable[[int], Sequence[int]], num_steps: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Steps that compute, and those of them that compute one of two prompts, at the same cost.

    Args:
        count: the cost in whole steps.
        choose: gives so many steps, or fewer.
        num_steps: of a generation. The last step never computes one prompt only.
    """
    for whole in dict.fromkeys(round(share * count) for share in _WHOLE_SHARES):
        steps = list(choose(2 * count - whole))
        if whole < 2 or whole >= count or len(steps) != 2 * count - whole:
            continue
        if steps[-1] in halves_of(steps, whole) and steps[-1] == num_steps - 1:
            steps[-1] -= 1
        if steps[-1] > steps[-2]:
            yield steps, halves_of(steps, whole)


def candidates(
    fit: Callable[[Sequence[Target], Pairing | None], Fit],
    targets: Sequence[Target],
    lengths: Sequence[float],
    count: int,
    choose: Callable[[int], Sequence[int]],
    pairing: Pairing,
) -> list[Candidate]:
    """Choices of steps of one cost, fitted. The first one computes both prompts at all of them.

    Args:
        fit: makes a fit.
        targets: to compare on.
        lengths: of the steps.
        count: the cost in whole steps.
        choose: gives so many steps.
        pairing: how a step carries two prompts.
    """

    def fitted(row: Row, pairing: Pairing | None) -> Candidate:
        judge = fit(targets[:JUDGES], pairing)
        row = judge.stage_by_stage(row)
        return Candidate(row, pairing, judge.error(row))

    found = [fitted(Row.of(lengths, choose(count)), None)]
    pairings = pairing.choices
    for steps, halves in splits(count, choose, len(lengths)):
        tried = [fitted(Row.of(lengths, steps, halves), each) for each in pairings]
        best = min(tried, key=lambda each: each.error)
        assert best.pairing is not None
        pairings = (best.pairing,)
        found.append(best)
    return found
