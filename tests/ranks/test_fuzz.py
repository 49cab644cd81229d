"""Random differences between ranks. ``python -m ranks.fuzz`` runs as many as one likes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.difference_fuzz import TIMEOUT, check
from helpers.world import World

pytestmark = [pytest.mark.xdist_group("ranks"), pytest.mark.long]


@pytest.fixture(scope="module")
def hasty_world() -> Iterator[World]:
    """Processes whose groups have a short timeout."""
    found = World(2, seconds=TIMEOUT)
    yield found
    found.close()


def test_every_difference_ends_in_equal_videos_or_an_error_on_every_rank(
    hasty_world: World,
) -> None:
    found = list(check(hasty_world, range(20)))  # from 2 to 4 processes
    assert len(found) == 20
    assert [case for case in found if case[2]] == []
