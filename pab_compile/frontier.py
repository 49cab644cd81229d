"""The best plans there are for known errors: exact, by dynamic programming.

The problem. A *group* of sites computes at some of the ``S`` steps, the first among them, and
reuses at the others. Reusing at step ``s`` with order ``o`` what was computed last, at the steps
``p[0] > p[1] > ... > p[o]``, costs an error ``e(s, p[:o + 1])``; computing costs the group's cost.
Errors of steps and of groups add up. Wanted: for every cost the least error, over which steps to
compute and which order to take at each of the others.

A group. The state after a computed step is ``p``, the steps computed last, as many as the highest
order needs. ``f[k][p]`` is the least error of the steps before ``p[0]``, if that is the ``k``-th
computed step::

    f[k + 1][q, *p] = min over p of  f[k][p] + sum over p[0] < s < q of e(s, p)
    e(s, p)         = min over o of  e(s, p[:o + 1])

Computed steps lie at most ``D + 1`` apart, so that a step has ``D ** O`` states for orders up to
``O``, and every number of computed steps is found at once.

Several groups. Each has a frontier: (cost, bytes, error) for every number of computed steps and
every highest order, without those that another one beats in all three. Groups are put together one
by one, every pair of choices, again without what is beaten: exact, and small, since frontiers are
short.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .plan import COMPUTE, MAX_ORDER

Sources = tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Sites that compute and reuse at the same steps.

    Attributes:
        name: for messages and the plan.
        num_steps: of a generation.
        error: ``error(step, sources)`` of all its sites together, where one more source than the
            order predicts the step, newest first; infinite where it is not known.
        cost: of one step that computes, in FLOPs, seconds or bytes on the wire.
        cache_bytes: of one kept output of every site.
        max_order: highest order of the reuse.
        max_distance: most steps between a reused step and the computed one before it.
    """

    name: str
    num_steps: int
    error: Callable[[int, Sources], float]
    cost: float
    cache_bytes: int
    max_order: int = MAX_ORDER
    max_distance: int = 8


@dataclass(frozen=True)
class Choice:
    """Entries of some groups, and what they come to.

    Attributes:
        cost: of the computed steps of all groups.
        cache_bytes: most bytes kept, the outputs that prediction needs included.
        error: sum over reused steps.
        rows: group name -> ``COMPUTE`` or the order of the reuse, one entry per step.
    """

    cost: float
    cache_bytes: int
    error: float
    rows: dict[str, tuple[int, ...]]


def best_choices(groups: Iterable[Group]) -> list[Choice]:
    """Every plan that no other beats in cost, bytes and error at once; cheapest first."""
    found = [Choice(0.0, 0, 0.0, {})]
    for group in groups:
        own = _of_group(group)
        found = _unbeaten(
            Choice(
                one.cost + other.cost,
                one.cache_bytes + other.cache_bytes,
                one.error + other.error,
                {**one.rows, **other.rows},
            )
            for one, other in itertools.product(found, own)
        )
    return found


def _of_group(group: Group) -> list[Choice]:
    choices = []
    for max_order in range(group.max_order + 1):
        for entries, error in _Search(group, max_order).by_count():
            highest = max(entries)
            kept = group.cache_bytes * (highest + 1)  # COMPUTE is -1: none
            cost = group.cost * entries.count(COMPUTE)
            choices.append(Choice(cost, kept, error, {group.name: entries}))
    return _unbeaten(choices)


class _Search:
    """The dynamic program of one group and one highest order."""

    def __init__(self, group: Group, max_order: int) -> None:
        self._num_steps = group.num_steps
        self._max_distance = group.max_distance
        self._num_sources = max_order + 1
        self.least = functools.cache(functools.partial(_least, group.error))

    def by_count(self) -> list[tuple[tuple[int, ...], float]]:
        """For every number of computed steps that can be had, the best entries and their error."""
        found = []
        reached: list[dict[Sources, tuple[float, Sources]]] = [{(0,): (0.0, ())}]
        while reached[-1]:
            following: dict[Sources, tuple[float, Sources]] = {}
            end: tuple[float, Sources] = (math.inf, ())
            for state, (before, _) in reached[-1].items():
                error = before
                for step in range(state[0] + 1, self._num_steps + 1):
                    if step == self._num_steps:
                        end = min(end, (error, state))
                        break
                    after = (step, *state)[: self._num_sources]
                    if error < following.get(after, (math.inf,))[0]:
                        following[after] = (error, state)
                    if step - state[0] > self._max_distance:
                        break
                    error += self.least(step, state)[0]
                    if math.isinf(error):
                        break
            if math.isfinite(end[0]):
                found.append((self._entries(reached, end[1]), end[0]))
            reached.append(following)
        return found

    def _entries(
        self, reached: list[dict[Sources, tuple[float, Sources]]], state: Sources
    ) -> tuple[int, ...]:
        """Walk back from the last computed step."""
        entries = [COMPUTE] * self._num_steps
        end = self._num_steps
        for count in range(len(reached) - 1, -1, -1):
            for step in range(state[0] + 1, end):
                entries[step] = self.least(step, state)[1]
            end, state = state[0], reached[count][state][1]
        return tuple(entries)


def _least(
    error: Callable[[int, Sources], float], step: int, sources: Sources
) -> tuple[float, int]:
    """The least error of a reuse, and its order; low orders first where they are equal."""
    return min((error(step, sources[: order + 1]), order) for order in range(len(sources)))


def _unbeaten(choices: Iterable[Choice]) -> list[Choice]:
    kept: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.cost, c.error, c.cache_bytes)):
        if not any(k.error <= choice.error and k.cache_bytes <= choice.cache_bytes for k in kept):
            kept.append(choice)
    return kept
