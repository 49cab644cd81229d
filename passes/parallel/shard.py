"""Shards: the positions of a dimension that one rank has.

A dimension of a full tensor has ``before + outer * size * inner + after`` positions. The factor
``size`` is the sharded axis. Each rank has a contiguous part of it, of nearly equal length. Every
rank has all of the other factors. It also has all positions before and after, such as prompt tokens
in one sequence with video tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shard:
    """How one dimension of a tensor is sharded.

    Attributes:
        dim: the dimension.
        size: positions of the axis on all ranks together.
        outer: positions outside the axis in the same dimension.
        inner: positions inside the axis in the same dimension.
        before: replicated positions at the beginning of the dimension.
        after: replicated positions at its end.
    """

    dim: int
    size: int
    outer: int = 1
    inner: int = 1
    before: int = 0
    after: int = 0

    @property
    def full(self) -> int:
        """Positions of the whole dimension."""
        return self.before + self.sharded + self.after

    @property
    def sharded(self) -> int:
        """Positions of the sharded part of the dimension."""
        return self.outer * self.size * self.inner

    @property
    def is_whole(self) -> bool:
        """Whether no position of the dimension is replicated."""
        return not (self.before or self.after)

    def at(self, dim: int) -> Shard:
        """The same shard of another dimension."""
        return replace(self, dim=dim)

    def local(self, count: int) -> int:
        """Positions of the dimension on a rank that holds ``count`` positions of the axis."""
        return self.before + self.outer * count * self.inner + self.after

    def local_shape(self, shape: Sequence[int], count: int) -> tuple[int, ...]:
        """Shape of a tensor on a rank that holds ``count`` positions of the axis."""
        return (*shape[: self.dim], self.local(count), *shape[self.dim + 1 :])

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a full tensor of this shape can be sharded like this."""
        return self.dim < len(shape) and shape[self.dim] == self.full


@dataclass(frozen=True)
class Ranks:
    """The ranks that share one axis, and which of them this graph is for.

    Attributes:
        size: number of ranks.
        rank: the rank that the graph is for.
        group: name of their process group.
        before: ranks of the group before them, which take no part.
        after: ranks of the group behind them, which take no part.
    """

    size: int
    rank: int = 0
    group: str = "0"
    before: int = 0
    after: int = 0

    def in_group(self, numbers: Sequence[int]) -> list[int]:
        """Numbers of these ranks, as numbers of all ranks of the group: 0 for the others."""
        return [*(0,) * self.before, *numbers, *(0,) * self.after]

    def counts(self, positions: int) -> tuple[int, ...]:
        """Positions of an axis per rank. The first ranks may have one more than the others."""
        least, more = positions // self.size, positions % self.size
        return tuple(least + (rank < more) for rank in range(self.size))

    def count(self, positions: int) -> int:
        """Positions of an axis on this rank."""
        return self.counts(positions)[self.rank]

    def bounds(self, positions: int, rank: int | None = None) -> tuple[int, int]:
        """First position and end of a rank's part of an axis (by default of this rank)."""
        rank = self.rank if rank is None else rank
        counts = self.counts(positions)
        start = sum(counts[:rank])
        return start, start + counts[rank]


@dataclass(frozen=True)
class Grid:
    """The ranks of a mesh of two axes that share a model.

    Attributes:
        tokens: the ranks that share the tokens.
        batch: the ranks that share the rows of the batch.
    """

    tokens: Ranks
    batch: Ranks


def through_view(shard: Shard, before: Sequence[int], after: Sequence[int]) -> Shard | None:
    """The shard of another view of the same elements; None if the view cuts the axis apart."""
    inside = math.prod(before[shard.dim + 1 :])
    if not shard.is_whole:
        for dim, num in enumerate(after):
            if num == shard.full and math.prod(after[dim + 1 :]) == inside:
                return shard.at(dim)
        return None
    inner = shard.inner * inside
    for dim, num in enumerate(after):
        suffix = math.prod(after[dim + 1 :])
        if suffix and inner % suffix == 0 and num % (shard.size * (inner // suffix)) == 0:
            inside_dim = inner // suffix
            outer = num // (shard.size * inside_dim)
            if outer * math.prod(after[:dim]) == shard.outer * math.prod(before[: shard.dim]):
                return Shard(dim, shard.size, outer, inside_dim)
    return None
