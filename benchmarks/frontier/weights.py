"""Steps and weights that need no fit: as others publish them, and as solvers have them.

Entries hold for all sites, one per step.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import numpy as np

from pab_compile.calibration.observation import lagrange
from pab_compile.plans.plan import COMPUTE, Entry

FIRST = 3
"""The first steps compute, as in TaylorSeer and in the presets ``linear*``."""


def computed_of(entries: Sequence[Entry]) -> list[int]:
    """The steps that compute."""
    return [step for step, entry in enumerate(entries) if entry == COMPUTE]


def gaps_of(computed: Sequence[int], num_steps: int) -> list[tuple[int, int]]:
    """From each computed step to the next one, or to the end."""
    return list(itertools.pairwise([*computed, num_steps]))


def evenly(computed: int, num_steps: int) -> list[int]:
    """Computed steps in even gaps."""
    return [round(i * num_steps / computed) for i in range(computed)]


def after_the_first(computed: int, num_steps: int) -> list[int]:
    """The first steps, then even gaps."""
    gap = (num_steps - FIRST + 1) / (computed - FIRST + 1)
    later = [FIRST - 1 + math.floor(gap * i + 0.5) for i in range(1, computed - FIRST + 1)]
    return [*range(FIRST), *later]


def repeated(computed: Sequence[int], num_steps: int) -> list[Entry]:
    """Outputs are repeated: what PAB does, and what residual reuse does."""
    return [COMPUTE if step in set(computed) else 0 for step in range(num_steps)]


def taylor(computed: Sequence[int], num_steps: int, order: int) -> list[Entry]:
    """TaylorSeer: the series around the last output, with divided differences as derivatives."""
    entries: list[Entry] = [COMPUTE] * num_steps
    for number, (start, end) in enumerate(gaps_of(computed, num_steps)):
        for step in range(start + 1, end):
            entries[step] = _taylor(computed[: number + 1], step, order)
    return entries


def _taylor(computed: Sequence[int], step: int, order: int) -> tuple[float, ...]:
    used = computed[-1 - order :]
    ahead, weights = step - used[-1], [0.0] * len(used)
    weights[-1] = 1.0
    if len(used) > 1:
        last = used[-1] - used[-2]
        weights[-1] += ahead / last
        weights[-2] -= ahead / last
    if len(used) > 2:
        last, before = used[-1] - used[-2], used[-2] - used[-3]
        second = (1 / last, -1 / last - 1 / before, 1 / before)
        for place, share in zip((-1, -2, -3), second, strict=True):
            weights[place] += ahead**2 / 2 * share / last
    return tuple(weights)


def polynomial(computed: Sequence[int], places: Sequence[float], order: int) -> list[Entry]:
    """Each reused step has the value of the polynomial at its own place."""
    entries: list[Entry] = [COMPUTE] * len(places)
    for number, (start, end) in enumerate(gaps_of(computed, len(places))):
        used = [places[step] for step in computed[: number + 1][-1 - order :]]
        for step in range(start + 1, end):
            entries[step] = tuple(lagrange(used, places[step]))
    return entries


def adams(computed: Sequence[int], levels: Sequence[float], order: int) -> list[Entry]:
    """The reused steps of a gap add up to the integral of the polynomial over the gap.

    Args:
        computed: steps that compute.
        levels: before each step, and after the last one.
        order: of the polynomial.
    """
    entries: list[Entry] = [COMPUTE] * (len(levels) - 1)
    for number, (start, end) in enumerate(gaps_of(computed, len(levels) - 1)):
        used = computed[: number + 1][-1 - order :]
        means = {step: _mean(levels, used, step) for step in range(start, end)}
        own = np.eye(len(used))[-1]
        rest = levels[start + 1] - levels[end]
        for step in range(start + 1, end):
            missing = (levels[start] - levels[start + 1]) / rest * (means[start] - own)
            entries[step] = tuple(map(float, means[step] + missing))
    return entries


def _mean(levels: Sequence[float], used: Sequence[int], step: int) -> np.ndarray:
    """Means of the Lagrange polynomials over a step, by two points of Gauss: exact up to cubes."""
    middle, half = (levels[step] + levels[step + 1]) / 2, (levels[step] - levels[step + 1]) / 2
    points = [levels[each] for each in used]
    return np.mean([lagrange(points, middle + half * s / 3**0.5) for s in (-1, 1)], axis=0)


def annealed(
    error: Callable[[list[int]], float], computed: int, num_steps: int, moves: int, seed: int = 0
) -> list[int]:
    """Steps that are moved one at a time, and kept if the error in closed loop says so.

    Args:
        error: of the videos with these computed steps, in dB; lower is better.
        computed: number of computed steps.
        num_steps: of a generation.
        moves: number of attempts.
        seed: of the moves.
    """
    chance, now = random.Random(seed), evenly(computed, num_steps)
    here = error(now)
    best, lowest = now, here
    for move in range(moves):
        warmth = 0.5 * (1 - move / moves)
        place = chance.randrange(1, computed)
        low, high = now[place - 1] + 1, ([*now, num_steps])[place + 1] - 1
        others = [step for step in range(low, high + 1) if step != now[place]]
        if not others:
            continue
        tried = [*now[:place], chance.choice(others), *now[place + 1 :]]
        there = error(tried)
        if there < here or chance.random() < math.exp((here - there) / max(warmth, 1e-6)):
            now, here = tried, there
        if here < lowest:
            best, lowest = now, here
    return best
