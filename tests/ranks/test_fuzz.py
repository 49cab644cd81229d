"""Random differences between ranks. ``python -m ranks.fuzz`` runs as many as one likes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from helpers.difference_fuzz import MESHES, TIMEOUT, check, drawn
from helpers.world import World

pytestmark = pytest.mark.xdist_group("ranks")
OF_TWO = [seed for seed in range(60) if MESHES[drawn(seed)[0]] == 2][:20]
"""Seeds whose meshes have two ranks: few processes start in less time."""


@pytest.fixture(scope="module")
def hasty_world() -> Iterator[World]:
    """Processes whose groups have a short timeout."""
    found = World(2, seconds=TIMEOUT)
    yield found
    found.close()


def test_differences_of_two_ranks_end_in_equal_videos_or_an_error_on_both(
    hasty_world: World,
) -> None:
    run_all(hasty_world, OF_TWO)


@pytest.mark.long
def test_differences_of_up_to_four_ranks_end_in_equal_videos_or_an_error_on_every_rank(
    hasty_world: World,
) -> None:
    run_all(hasty_world, range(20))


def run_all(world: World, seeds: Sequence[int]) -> None:
    found = list(check(world, seeds))
    assert len(found) == len(seeds) == 20
    assert [case for case in found if case[2]] == []
