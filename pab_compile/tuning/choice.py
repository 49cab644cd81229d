"""Which steps compute, and which of them compute one of two prompts only.

With the cost of ``n`` whole steps, ``f`` steps may compute both prompts and ``2 (n - f)`` one of
them. They alternate, as F H F H H. Each choice is fitted stage by stage, and the one that ends
nearest to the targets is taken. A choice with halves has more numbers, so it must be nearer by a
small margin. The same choice says which half of a batch computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .fit import Fit, Target
from .pairs import Pairing
from .row import Row

_MARGIN = 0.115
"""Choices with halves must be nearer by so much in the mean logarithm, 0.5 dB.

They have more numbers to fit, so of two that are alike the other is taken.
"""
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


def evenly(count: int, num_steps: int) -> list[int]:
    """Steps in even gaps."""
    return [round(number * num_steps / count) for number in range(count)]


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
    pairing: Pairing | None,
) -> list[Candidate]:
    """Choices of steps of one cost, fitted. The first one computes both prompts at all of them.

    Args:
        fit: makes a fit.
        targets: to compare on.
        lengths: of the steps.
        count: the cost in whole steps.
        choose: gives so many steps.
        pairing: how a step carries two prompts, if one of them may be left out.
    """
    num_steps = len(lengths)

    def fitted(row: Row, pairing: Pairing | None) -> Candidate:
        fitting = fit(targets, pairing)
        row = fitting.stage_by_stage(row)
        return Candidate(row, pairing, fitting.error(row))

    def even(count: int) -> list[int]:
        return evenly(min(count, num_steps), num_steps)

    ways = [choose] if list(choose(count)) == even(count) else [choose, even]
    whole = [fitted(Row.of(lengths, way(count)), None) for way in ways]
    best = min(whole, key=lambda each: each.error)
    if pairing is None:
        return [best]
    found, pairings = [best], pairing.choices
    for steps, halves in splits(count, even, num_steps):
        tried = [fitted(Row.of(lengths, steps, halves), each) for each in pairings]
        one = min(tried, key=lambda each: each.error)
        assert one.pairing is not None
        pairings = (one.pairing,)
        found.append(one)
    return found


def chosen(found: Sequence[Candidate]) -> Candidate:
    """The best one. The first one computes both prompts at all its steps."""
    whole, *halved = found
    best = min(halved, key=lambda each: each.error, default=whole)
    return best if best.error < whole.error - _MARGIN else whole
