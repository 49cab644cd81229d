"""The search for plans against brute force."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from pab_compile.frontier import Choice, Group, best_choices
from pab_compile.plan import COMPUTE

NUM_STEPS = 6


def draw_group(seed: int, max_order: int = 1, distance: int = 3, unknown: float = 0.0) -> Group:
    def error(step: int, sources: tuple[int, ...]) -> float:
        draw = random.Random(f"{seed} {step} {sources}")
        return math.inf if draw.random() < unknown else draw.random()

    draw = random.Random(seed)
    cost, cache_bytes = draw.choice([1.0, 2.0, 5.0]), draw.choice([10, 30])
    return Group(f"group{seed}", NUM_STEPS, error, cost, cache_bytes, max_order, distance)


def every_choice(group: Group) -> list[Choice]:
    """All entries that a group can have, valued one by one."""
    found = []
    for rest in itertools.product(range(COMPUTE, group.max_order + 1), repeat=NUM_STEPS - 1):
        entries, error, computed = (COMPUTE, *rest), 0.0, []
        for step, entry in enumerate(entries):
            if entry == COMPUTE:
                computed.insert(0, step)
            elif entry >= len(computed) or step - computed[0] > group.max_distance:
                error = math.inf
            else:
                error += group.error(step, tuple(computed[: entry + 1]))
        if math.isfinite(error):
            kept = (max(entries) + 1) * group.cache_bytes
            cost = group.cost * entries.count(COMPUTE)
            found.append(Choice(cost, kept, error, {group.name: entries}))
    return found


def together(choices: tuple[Choice, ...]) -> Choice:
    rows = {name: row for choice in choices for name, row in choice.rows.items()}
    return Choice(
        sum(c.cost for c in choices),
        sum(c.cache_bytes for c in choices),
        sum(c.error for c in choices),
        rows,
    )


def least_error(choices: list[Choice], cost: float, cache_bytes: int) -> float:
    fitting = [c.error for c in choices if c.cost <= cost and c.cache_bytes <= cache_bytes]
    return min(fitting, default=math.inf)


@pytest.mark.parametrize(
    "groups",
    [
        [draw_group(0)],
        [draw_group(1, max_order=2)],
        [draw_group(2, unknown=0.3)],
        [draw_group(3, max_order=0), draw_group(4, max_order=0)],
        [draw_group(5, distance=1), draw_group(6, max_order=0, unknown=0.5)],
    ],
)
def test_no_plan_is_better_at_any_cost_and_any_memory(groups: list[Group]) -> None:
    brute = [together(pick) for pick in itertools.product(*map(every_choice, groups))]
    found = best_choices(groups)
    for cost, cache_bytes in {(c.cost, c.cache_bytes) for c in brute}:
        expected = least_error(brute, cost, cache_bytes)
        assert least_error(found, cost, cache_bytes) == pytest.approx(expected, abs=1e-12)


def test_every_choice_is_worth_what_it_says() -> None:
    groups = [draw_group(7), draw_group(8, max_order=0)]
    valued = {
        tuple(sorted(choice.rows.items())): choice
        for choice in map(together, itertools.product(*map(every_choice, groups)))
    }
    found = best_choices(groups)
    assert len(found) > 5
    for choice in found:
        worth = valued[tuple(sorted(choice.rows.items()))]
        assert choice.error == pytest.approx(worth.error)
        assert (choice.cost, choice.cache_bytes) == (worth.cost, worth.cache_bytes)


def test_with_nothing_known_everything_computes() -> None:
    (only,) = best_choices([draw_group(9, unknown=1.0)])
    assert only.rows == {"group9": (COMPUTE,) * NUM_STEPS}
    assert (only.error, only.cache_bytes) == (0.0, 0)


def test_thirty_steps_take_little_time() -> None:
    def error(step: int, sources: tuple[int, ...]) -> float:
        return 0.01 * (step - sources[0]) ** 2 / len(sources)

    found = best_choices([Group(name, 30, error, 1.0, 1) for name in ("attention", "mlp")])
    assert found[0].rows["mlp"].count(COMPUTE) == 4  # nine steps apart at most
    assert found[-1].error == 0.0
