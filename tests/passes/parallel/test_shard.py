"""Which positions a rank holds."""

from __future__ import annotations

import pytest

from pab_compile.passes.parallel.shard import Ranks, Shard, through_view


@pytest.mark.parametrize(
    ("positions", "counts"), [(6, (2, 2, 2)), (7, (3, 2, 2)), (8, (3, 3, 2)), (3, (1, 1, 1))]
)
def test_parts_are_contiguous_and_differ_by_one_at_most(
    positions: int, counts: tuple[int, ...]
) -> None:
    ranks = Ranks(3)
    assert ranks.counts(positions) == counts
    bounds = [ranks.bounds(positions, rank) for rank in range(3)]
    assert [high - low for low, high in bounds] == list(counts)
    assert bounds[0][0] == 0 and bounds[-1][1] == positions


def test_a_dimension_holds_the_axis_and_what_every_rank_has() -> None:
    shard = Shard(1, size=6, inner=4, before=5, after=1)
    assert shard.full == 30 and shard.sharded == 24 and not shard.is_whole
    assert shard.local_shape((2, 30, 8), 2) == (2, 14, 8)


@pytest.mark.parametrize(
    ("shard", "before", "after", "expected"),
    [
        (Shard(1, 3), (2, 3, 8), (6, 8), Shard(0, 3, outer=2)),
        (Shard(0, 3, outer=2), (6, 8), (2, 3, 8), Shard(1, 3)),
        (Shard(1, 3), (2, 3, 8), (2, 24), Shard(1, 3, inner=8)),
        (Shard(1, 3, inner=8), (2, 24), (2, 3, 2, 4), Shard(1, 3)),
        (Shard(1, 3, inner=8), (2, 24), (2, 6, 4), Shard(1, 3, inner=2)),
        (Shard(2, 4), (2, 1, 4, 5), (2, 4, 1, 5), Shard(1, 4)),
        (Shard(1, 4), (2, 4), (2, 2, 2), None),
        (Shard(1, 6), (4, 6), (3, 8), None),
        (Shard(1, 3, before=2), (2, 5, 8), (2, 5, 2, 4), Shard(1, 3, before=2)),
        (Shard(1, 3, before=2), (2, 5, 8), (10, 8), None),
    ],
)
def test_a_shard_keeps_its_axis_through_a_view(
    shard: Shard, before: tuple[int, ...], after: tuple[int, ...], expected: Shard | None
) -> None:
    assert through_view(shard, before, after) == expected
