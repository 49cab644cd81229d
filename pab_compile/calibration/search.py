"""The search for the row of least error, for a given number of computed steps.

The problem. All sites compute at ``count`` of the ``S`` steps, the first among them, and reuse in
the gaps between, each gap with an order of its own. Wanted is the row of least error, where the
error is a sum over pairs of steps (``drift``): it does not split into parts, one for each gap, so
that dynamic programming does not apply, and there are ``binomial(S - 1, count - 1)`` times up to
``orders ** count`` rows.

The search is local, from several starts: computed steps as even as they can be, after one to three
at the beginning, for every order, and the best row of one computed step less with the best step
added. From each it takes the best of all neighbours while that is better:

- a gap of another order, or all gaps of it;
- a run of successive computed steps a step or two earlier or later;
- a computed step anywhere else.

Ties go to the first in a fixed order, so that the result is always the same. It need not be the
optimum; ``tests/test_search.py`` says in how many of its instances it is, against brute force.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from pab_compile.plans.plan import COMPUTE

_SHIFTS = (-2, -1, 1, 2)
_WARM = (1, 2, 3)
_BETTER = 1 - 1e-9

Errors = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Found:
    """A row and its error.

    Attributes:
        error: as the measure gives it.
        row: ``COMPUTE`` or the order of the reuse, one entry per step.
    """

    error: float
    row: tuple[int, ...]


def best_rows(errors: Errors, num_steps: int, counts: range, max_order: int) -> Iterator[Found]:
    """For each number of computed steps the best row that is found.

    Args:
        errors: ``[rows, steps] -> [rows]``; infinite for rows that cannot be.
        num_steps: of a generation.
        counts: numbers of computed steps, ascending.
        max_order: highest order of the reuse.
    """
    search = _Search(errors, num_steps, max_order)
    last: Found | None = None
    for count in counts:
        last = search.best(count, last)
        yield last


class _Search:
    """One search; where all rows of a count are impossible, it finds one of infinite error."""

    def __init__(self, errors: Errors, num_steps: int, max_order: int) -> None:
        self._errors = errors
        self._num_steps = num_steps
        self._max_order = max_order

    def best(self, count: int, smaller: Found | None) -> Found:
        starts = self._even(count)
        if smaller is not None and smaller.row.count(COMPUTE) == count - 1:
            starts = torch.cat(
                [starts, self._best_of(self._with_one_more(_tensor(smaller.row)))[1]]
            )
        found = [self._descend(start[None]) for start in starts.unique(dim=0)]
        return min(found, key=lambda one: (one.error, one.row))

    def _descend(self, row: torch.Tensor) -> Found:
        error = float(self._errors(row))
        neighbourhoods = (self._other_orders, self._shifted, self._moved)
        at = 0
        while at < len(neighbourhoods):
            others = neighbourhoods[at](row[0])
            best, new = self._best_of(others) if len(others) else (math.inf, row)
            # From an impossible row any possible one is better.
            if best < error * _BETTER:
                error, row, at = best, new, 0
            else:
                at += 1
        return Found(error, tuple(row[0].tolist()))

    def _best_of(self, rows: torch.Tensor) -> tuple[float, torch.Tensor]:
        values = self._errors(rows)
        best = int(values.argmin())
        return float(values[best]), rows[best : best + 1]

    def _even(self, count: int) -> torch.Tensor:
        """Evenly spaced rows, after some computed steps at the beginning."""
        rows = []
        for warm in (w for w in _WARM if w <= count):
            rest = count - warm
            gap = (self._num_steps - warm) / (rest + 1) if rest else 0.0
            steps = [*range(warm), *(round(warm - 1 + gap * (i + 1)) for i in range(rest))]
            if len(set(steps)) == count and max(steps) < self._num_steps:
                for order in range(self._max_order + 1):
                    row = torch.full((self._num_steps,), order)
                    row[steps] = COMPUTE
                    rows.append(row)
        if not rows:
            row = torch.zeros(self._num_steps, dtype=torch.long)
            row[:count] = COMPUTE
            rows.append(row)
        return torch.stack(rows)

    def _computed(self, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Computed steps, and the order of the gap after each.

        A gap without a reuse has that of the gap before, or of the first that has one.
        """
        orders: list[int] = []
        order = next((entry for entry in row.tolist() if entry != COMPUTE), 0)
        for entry in row.tolist():
            if entry == COMPUTE:
                orders.append(order)
            else:
                orders[-1] = order = entry
        return (row == COMPUTE).nonzero()[:, 0], torch.tensor(orders)

    def _other_orders(self, row: torch.Tensor) -> torch.Tensor:
        gaps, reused = (row == COMPUTE).cumsum(0), row != COMPUTE
        masks = [reused, *(reused & (gaps == gap) for gap in gaps[reused].unique())]
        others = [
            torch.where(mask, order, row) for mask in masks for order in range(self._max_order + 1)
        ]
        return torch.stack(others)

    def _shifted(self, row: torch.Tensor) -> torch.Tensor:
        """Successive computed steps, all but the first, earlier or later."""
        steps, orders = self._computed(row)
        count = len(steps)
        rows = [
            torch.cat([steps[:first], steps[first:end] + shift, steps[end:]])
            for shift in _SHIFTS
            for first in range(1, count)
            for end in range(first + 1, count + 1)
        ]
        if not rows:
            return row[None][:0]
        moved = torch.stack(rows)
        fits = (moved.diff(dim=1) > 0).all(1) & (moved[:, -1] < self._num_steps)
        moved = moved[fits]
        return _filled(moved, orders.expand_as(moved), self._num_steps)

    def _moved(self, row: torch.Tensor) -> torch.Tensor:
        """One computed step, not the first, elsewhere; it takes the order of its gap along."""
        steps, orders = self._computed(row)
        free = (row != COMPUTE).nonzero()[:, 0]
        which, where = (
            torch.cartesian_prod(torch.arange(1, len(steps)), torch.arange(len(free))).T
            if len(steps) > 1 and len(free)
            else torch.zeros(2, 0, dtype=torch.long)
        )
        moved = steps.repeat(len(which), 1)
        moved[torch.arange(len(which)), which] = free[where]
        moved, index = moved.sort(dim=1)
        return _filled(moved, orders[index], self._num_steps)

    def _with_one_more(self, row: torch.Tensor) -> torch.Tensor:
        free = (row != COMPUTE).nonzero()[:, 0]
        rows = row.repeat(len(free), 1)
        rows[torch.arange(len(free)), free] = COMPUTE
        return rows


def _filled(computed: torch.Tensor, orders: torch.Tensor, num_steps: int) -> torch.Tensor:
    """Rows with these computed steps, ascending, and these orders in the gaps after them."""
    here = torch.arange(num_steps).repeat(len(computed), 1)
    gaps = torch.searchsorted(computed.contiguous(), here, right=True) - 1
    return orders.gather(1, gaps).scatter(1, computed, COMPUTE)


def _tensor(row: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor(row, dtype=torch.long)
