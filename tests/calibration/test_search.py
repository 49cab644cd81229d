"""The search for rows against brute force."""

from __future__ import annotations

import functools
import itertools
import random

import pytest
import torch

from pab_compile.calibration.drift import Drift
from pab_compile.calibration.search import best_entries
from pab_compile.plans.plan import COMPUTE

NUM_STEPS = 12
INSTANCES = 24
MAX_ORDER = 1
OPTIMAL, WORST = 65, 1.75
"""Optima among three times ``INSTANCES``; and the most that it is off by, as a ratio of errors."""


@functools.cache
def rows_by_count() -> dict[int, torch.Tensor]:
    """All rows, with one order per gap."""
    found = {}
    for count in (3, 4, 5):
        rows = []
        for later in itertools.combinations(range(1, NUM_STEPS), count - 1):
            computed = (0, *later)
            ends = (*later, NUM_STEPS)
            lengths = [end - step - 1 for step, end in zip(computed, ends, strict=True)]
            choices = [range(MAX_ORDER + 1) if length else (0,) for length in lengths]
            for orders in itertools.product(*choices):
                row = []
                for order, length in zip(orders, lengths, strict=True):
                    row += [COMPUTE, *[order] * length]
                rows.append(row)
        found[count] = torch.tensor(rows)
    return found


def draw_drift(seed: int) -> Drift:
    """Of outputs that are random curves through a few dimensions."""
    generator = torch.Generator().manual_seed(seed)
    draw = random.Random(seed)
    t = torch.linspace(0, draw.uniform(2, 6), NUM_STEPS, dtype=torch.float64)[:, None]
    a, b, c = torch.randn(3, 1, 8, generator=generator, dtype=torch.float64)
    outputs = a + torch.sin(b * t + c) + draw.uniform(0, 0.5) * torch.cos(3 * t + a)
    return Drift(outputs @ outputs.T, [1.0] * NUM_STEPS, range(NUM_STEPS))


@pytest.mark.long
def test_the_optimum_is_found_in_most_instances_and_nearly_in_the_others() -> None:
    ratios = []
    for seed in range(INSTANCES):
        drift = draw_drift(seed)
        for found in best_entries(drift, NUM_STEPS, range(3, 6), MAX_ORDER):
            assert found.error == float(drift(torch.tensor([found.entries])))
            optimum = float(drift(rows_by_count()[found.entries.count(COMPUTE)]).min())
            ratios.append(found.error / optimum)
    optimal = sum(ratio < 1 + 1e-6 for ratio in ratios)
    print(f"optimum in {optimal} of {len(ratios)}; worst {max(ratios):.2f} times its squared error")
    assert optimal >= OPTIMAL
    assert max(ratios) <= WORST


def test_every_row_has_as_many_computed_steps_as_asked_for_and_the_orders_that_are_allowed() -> (
    None
):
    for max_order in (0, 2):
        counts = range(1, NUM_STEPS + 1)
        found = list(best_entries(draw_drift(3), NUM_STEPS, counts, max_order))
        assert [one.entries.count(COMPUTE) for one in found] == list(counts)
        assert all(one.entries[0] == COMPUTE for one in found)
        assert {entry for one in found for entry in one.entries} <= {COMPUTE, *range(max_order + 1)}
        errors = [one.error for one in found]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] == 0


def test_the_same_row_is_found_again() -> None:
    once, again = (list(best_entries(draw_drift(4), NUM_STEPS, range(3, 6), 2)) for _ in range(2))
    assert once == again


def test_where_no_row_is_possible_the_error_says_so() -> None:
    (found,) = best_entries(lambda rows: torch.full((len(rows),), torch.inf), 6, range(2, 3), 1)
    assert found.error == float("inf")


@pytest.mark.parametrize("num_steps", [1, 2])
def test_the_shortest_generations(num_steps: int) -> None:
    drift = Drift(torch.eye(num_steps, dtype=torch.float64), [1.0] * num_steps, range(num_steps))
    found = list(best_entries(drift, num_steps, range(1, num_steps + 1), 2))
    assert found[-1].entries == (COMPUTE,) * num_steps
