"""Two processes: one that fails brings the other down, and a model that exchanges by itself."""

from __future__ import annotations

import pytest

import rank_cases
from latte import assert_same
from world import World

pytestmark = pytest.mark.xdist_group("ranks")
PATIENCE = 1.0


def test_a_rank_that_fails_in_a_step_ends_the_others_with_its_message(world: World) -> None:
    ranks = world.run(rank_cases.failing, "1", PATIENCE, ranks=4)
    failed = ranks.pop(1)
    assert failed["raised"] == "ValueError: no memory left"
    message = "Rank 1 of the mesh failed in a call of the model: ValueError: no memory left"
    for found in ranks:
        assert found["raised"] == f"RanksError: {message}"
    for found in (*ranks, failed):
        assert found["seconds"] < PATIENCE + 5
        assert message in found["after"] and "Start the processes anew" in found["after"]


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


def test_ranks_that_fail_alike_keep_their_own_error_and_go_on(world: World) -> None:
    expected = rank_cases.generate(None, "computes always", "none", num_steps=4)
    for found in world.run(rank_cases.failing, "all", 60.0, ranks=4):
        assert found["raised"] == "ValueError: no memory left"
        assert found["seconds"] < 30
        assert found["after"] == ""
        assert_same(found["prediction"], expected["predictions"][-1])
