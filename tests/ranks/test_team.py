"""Two processes: one that fails brings the other down, and a model that exchanges by itself."""

from __future__ import annotations

import re
from typing import Any

import pytest

import helpers.rank_cases as rank_cases
from helpers.latte import assert_same
from helpers.world import World

pytestmark = pytest.mark.xdist_group("ranks")
PATIENCE = 1.0


def test_ranks_without_memory_end_the_others_and_all_go_on(world: World) -> None:
    """With what is compiled, and after the last failure with a new compilation."""
    expected = rank_cases.generate(None, "computes always", "none", num_steps=4)
    attempts = [("1", PATIENCE), ("apart", PATIENCE), ("all", 60.0), ("0", PATIENCE)]
    first, second = world.run(rank_cases.failing, attempts, False, True, ranks=2, alone=True)
    for found in (*first, *second):
        assert found["seconds"] < 3 * PATIENCE + 5
        assert found["after"] == ""  # the ranks met again
        assert_same(found["prediction"], expected["predictions"][-1])
    own = "OutOfMemoryError: no memory left"
    others = f"RanksError: Rank {{}} of the mesh failed in a call of the model: {own}"
    assert [found["raised"] for found in first] == [others.format(1), own, own, own]
    assert [found["raised"] for found in second] == [own, others.format(0), own, others.format(0)]


@pytest.mark.sample("True")
@pytest.mark.parametrize("full", [False, True])
def test_a_model_that_exchanges_by_itself_does_so_on_computed_steps_only(
    world: World, full: bool
) -> None:
    expected = rank_cases.hand_parallel(None, full)
    assert set(expected["computed"]) == {"spatial", "full" if full else "temporal"}
    for found in world.run(rank_cases.hand_parallel, full, ranks=2):
        assert_same(found["predictions"], expected["predictions"])
        assert found["computed"] == expected["computed"]
        assert found["per step"] == [4, 0, 0, 4, 0, 4]  # two sites, there and back


@pytest.mark.long
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("different plans", "do not run the same program"),
        ("a bad option", "could not compile the model: OptionError|is not a choice"),
    ],
)
def test_ranks_of_such_a_model_that_would_not_exchange_alike_are_told(
    world: World, case: str, message: str
) -> None:
    results: list[Any] = world.run(rank_cases.hand_parallel_refused, case, ranks=2)
    assert all(re.search(message, found) for found in results), results


@pytest.mark.long
@pytest.mark.parametrize(("name", "exchanges"), [("wan", 4), ("flux", 2 * 4)])
def test_a_model_that_diffusers_made_parallel_exchanges_on_computed_steps_only(
    world: World, name: str, exchanges: int
) -> None:
    expected, _ = rank_cases.context_parallel(None, name)
    for outputs, per_step in world.run(rank_cases.context_parallel, name, ranks=4):
        for got, whole in zip(outputs, expected, strict=True):
            assert_same(got, whole)
        assert per_step == [exchanges, 0] * 3  # q, k, v and the output of every site


@pytest.mark.long
def test_four_ranks_that_fail_alike_keep_their_own_error_and_go_on(world: World) -> None:
    expected = rank_cases.generate(None, "computes always", "none", num_steps=4)
    for (found,) in world.run(rank_cases.failing, [("all", 60.0)], ranks=4, alone=True):
        assert found["raised"] == "OutOfMemoryError: no memory left"
        assert found["seconds"] < 30
        assert found["after"] == ""
        assert_same(found["prediction"], expected["predictions"][-1])
