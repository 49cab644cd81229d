"""The search for the plan of least error, for a given number of computed steps.

All sites compute at ``count`` of the ``S`` steps. The first step is one of them. They reuse in the
gaps between, and each gap has its own order. A candidate has one entry per step. The error is a sum
over pairs of steps (``drift``), so it does not split into one part per gap, and dynamic programming
does not apply. There are ``binomial(S - 1, count - 1)`` times up to ``orders ** count`` candidates.

The search is local and has several starts:

- for every order, evenly spaced computed steps after one to three computed steps at the beginning;
- the best candidate with one computed step less, with the best step added.

From each start it moves to the best neighbour while that one is better. Neighbours are:

- another order in one gap, or in all gaps;
- successive computed steps that move one or two steps earlier or later;
- one computed step at any other place.

Ties go to the first candidate in a fixed order, so the result is always the same. It may not be
the optimum. ``tests/calibration/test_search.py`` compares it with brute force.
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
    """A candidate and its error.

    Attributes:
        error: as ``errors`` gives it.
        entries: one per step: ``COMPUTE`` or the order of the reuse.
    """

    error: float
    entries: tuple[int, ...]


def best_entries(errors: Errors, num_steps: int, counts: range, max_order: int) -> Iterator[Found]:
    """The best candidate that is found, for each number of computed steps.

    Args:
        errors: ``[candidates, steps] -> [candidates]``; infinite for impossible candidates.
        num_steps: number of steps of a generation.
        counts: numbers of computed steps, ascending.
        max_order: highest order of the reuse.
    """
    search = _Search(errors, num_steps, max_order)
    last: Found | None = None
    for count in counts:
        last = search.best(count, last)
        yield last


class _Search:
    """One search. If all candidates of a count are impossible, the error is infinite."""

    def __init__(self, errors: Errors, num_steps: int, max_order: int) -> None:
        self._errors = errors
        self._num_steps = num_steps
        self._max_order = max_order

    def best(self, count: int, smaller: Found | None) -> Found:
        starts = self._even(count)
        if smaller is not None and smaller.entries.count(COMPUTE) == count - 1:
            starts = torch.cat(
                [starts, self._best_of(self._with_one_more(_tensor(smaller.entries)))[1]]
            )
        found = [self._descend(start[None]) for start in starts.unique(dim=0)]
        return min(found, key=lambda one: (one.error, one.entries))

    def _descend(self, start: torch.Tensor) -> Found:
        entries = start
        error = float(self._errors(entries))
        neighbourhoods = (self._other_orders, self._shifted, self._moved)
        at = 0
        while at < len(neighbourhoods):
            others = neighbourhoods[at](entries[0])
            best, new = self._best_of(others) if len(others) else (math.inf, entries)
            # Any possible candidate is better than an impossible one.
            if best < error * _BETTER:
                error, entries, at = best, new, 0
            else:
                at += 1
        return Found(error, tuple(entries[0].tolist()))

    def _best_of(self, candidates: torch.Tensor) -> tuple[float, torch.Tensor]:
        values = self._errors(candidates)
        best = int(values.argmin())
        return float(values[best]), candidates[best : best + 1]

    def _even(self, count: int) -> torch.Tensor:
        """Evenly spaced computed steps, after some at the beginning."""
        candidates = []
        for warm in (w for w in _WARM if w <= count):
            rest = count - warm
            gap = (self._num_steps - warm) / (rest + 1) if rest else 0.0
            steps = [*range(warm), *(round(warm - 1 + gap * (i + 1)) for i in range(rest))]
            if len(set(steps)) == count and max(steps) < self._num_steps:
                for order in range(self._max_order + 1):
                    entries = torch.full((self._num_steps,), order)
                    entries[steps] = COMPUTE
                    candidates.append(entries)
        if not candidates:
            entries = torch.zeros(self._num_steps, dtype=torch.long)
            entries[:count] = COMPUTE
            candidates.append(entries)
        return torch.stack(candidates)

    def _computed(self, entries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Computed steps, and the order of the gap after each.

        A gap without a reuse gets the order of the gap before it, or of the first with a reuse.
        """
        orders: list[int] = []
        order = next((entry for entry in entries.tolist() if entry != COMPUTE), 0)
        for entry in entries.tolist():
            if entry == COMPUTE:
                orders.append(order)
            else:
                orders[-1] = order = entry
        return (entries == COMPUTE).nonzero()[:, 0], torch.tensor(orders)

    def _other_orders(self, entries: torch.Tensor) -> torch.Tensor:
        gaps, reused = (entries == COMPUTE).cumsum(0), entries != COMPUTE
        masks = [reused, *(reused & (gaps == gap) for gap in gaps[reused].unique())]
        others = [
            torch.where(mask, order, entries)
            for mask in masks
            for order in range(self._max_order + 1)
        ]
        return torch.stack(others)

    def _shifted(self, entries: torch.Tensor) -> torch.Tensor:
        """Move successive computed steps, but not the first step, earlier or later."""
        steps, orders = self._computed(entries)
        count = len(steps)
        candidates = [
            torch.cat([steps[:first], steps[first:end] + shift, steps[end:]])
            for shift in _SHIFTS
            for first in range(1, count)
            for end in range(first + 1, count + 1)
        ]
        if not candidates:
            return entries[None][:0]
        moved = torch.stack(candidates)
        fits = (moved.diff(dim=1) > 0).all(1) & (moved[:, -1] < self._num_steps)
        moved = moved[fits]
        return _filled(moved, orders.expand_as(moved), self._num_steps)

    def _moved(self, entries: torch.Tensor) -> torch.Tensor:
        """Move one computed step, but not the first, together with the order of its gap."""
        steps, orders = self._computed(entries)
        free = (entries != COMPUTE).nonzero()[:, 0]
        which, where = (
            torch.cartesian_prod(torch.arange(1, len(steps)), torch.arange(len(free))).T
            if len(steps) > 1 and len(free)
            else torch.zeros(2, 0, dtype=torch.long)
        )
        moved = steps.repeat(len(which), 1)
        moved[torch.arange(len(which)), which] = free[where]
        moved, index = moved.sort(dim=1)
        return _filled(moved, orders[index], self._num_steps)

    def _with_one_more(self, entries: torch.Tensor) -> torch.Tensor:
        free = (entries != COMPUTE).nonzero()[:, 0]
        candidates = entries.repeat(len(free), 1)
        candidates[torch.arange(len(free)), free] = COMPUTE
        return candidates


def _filled(computed: torch.Tensor, orders: torch.Tensor, num_steps: int) -> torch.Tensor:
    """Candidates with these computed steps, ascending, and these orders in the gaps after them."""
    here = torch.arange(num_steps).repeat(len(computed), 1)
    gaps = torch.searchsorted(computed.contiguous(), here, right=True) - 1
    return orders.gather(1, gaps).scatter(1, computed, COMPUTE)


def _tensor(entries: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor(entries, dtype=torch.long)
