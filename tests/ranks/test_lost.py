"""One rank of a mesh is lost to the others: they raise within seconds, and say which and how."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import helpers.lost_cases as cases
from helpers.latte import assert_same
from helpers.world import World

pytestmark = pytest.mark.xdist_group("ranks")
TIMEOUT, SOON = 8.0, 25.0
"""Seconds. A rank that calls the model for the first time must trace it within the timeout."""


@pytest.fixture(scope="module")
def larger_world() -> Iterator[World]:
    """Three processes, of which two share a model. Their groups have a short timeout."""
    found = World(3, seconds=TIMEOUT)
    yield found
    found.close()


def test_the_own_groups_of_ranks_have_the_timeout_that_the_user_gave(larger_world: World) -> None:
    assert larger_world.run(cases.timeouts, ranks=3) == [[TIMEOUT]] * 3


def test_a_mesh_smaller_than_the_world_raises_with_the_lost_rank_and_goes_on(
    larger_world: World,
) -> None:
    names = [
        "does not call",
        "nothing",
        "raises outside",
        "does not call after it",
        "after raising",
        "has no memory",
        "after no memory",
        "is killed",
    ]
    expected = cases.alone()
    (found,) = larger_world.run(cases.losing, names, ranks=2, killed=[1])
    for name in ("nothing", "after raising", "after no memory"):
        error, _, video = found[name]
        assert error == "", (name, error)
        assert_same(video, expected)
    error, seconds, _ = found["does not call"]
    assert error.startswith("RanksError: Rank 1 of the mesh did not call the model within")
    assert TIMEOUT <= seconds < 3 * SOON  # with the first trace
    error, seconds, _ = found["raises outside"]
    assert error.startswith("RanksError: ") and "rank 1 is outside of the model" in error
    assert seconds < SOON
    error, seconds, _ = found["does not call after it"]
    assert "The ranks could not begin anew: Rank 1 of the mesh did not come" in error
    assert seconds < SOON
    error, seconds, _ = found["has no memory"]
    message = "Rank 1 of the mesh failed in a call of the model: OutOfMemoryError: no memory left"
    assert error == f"RanksError: {message}"
    assert seconds < SOON
    error, seconds, _ = found["is killed"]
    assert error.startswith("RanksError: Rank 1 of the mesh does not answer: its process ended")
    assert seconds < SOON
