"""Random differences between ranks. ``python -m ranks.fuzz`` runs as many as one likes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from helpers.difference_fuzz import MESHES, TIMEOUT, check, drawn
from helpers.world import World

pytestmark = pytest.mark.xdist_group("ranks")
LENGTHY = ("cancels", "does not call", "compiles anew", "length", "size")
"""Kinds that wait for the timeout or for Dynamo: in ``test_lost`` and ``test_differences``."""


def quick_seeds() -> list[int]:
    """Seeds of two ranks, since few processes start in less time, without lengthy kinds."""
    cases = {seed: drawn(seed) for seed in range(100)}
    return [
        seed
        for seed, (mesh, difference) in cases.items()
        if MESHES[mesh] == 2 and difference.kind not in LENGTHY
    ][:20]


@pytest.fixture(scope="module")
def hasty_world() -> Iterator[World]:
    """Processes whose groups have a short timeout."""
    found = World(2, seconds=TIMEOUT)
    yield found
    found.close()


def test_differences_of_two_ranks_end_in_equal_videos_or_an_error_on_both(
    hasty_world: World,
) -> None:
    run_all(hasty_world, quick_seeds())


@pytest.mark.long
def test_differences_of_up_to_four_ranks_end_in_equal_videos_or_an_error_on_every_rank(
    hasty_world: World,
) -> None:
    run_all(hasty_world, range(20))


def run_all(world: World, seeds: Sequence[int]) -> None:
    found = list(check(world, seeds))
    assert len(found) == len(seeds) == 20
    assert [case for case in found if case[2]] == []
