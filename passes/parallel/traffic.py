"""Traffic: the bytes that ranks send under a layout.

There are two ways of counting. The *convention* of the papers (arXiv 2403.10266, 2408.12588) counts
``M / N`` per re-sharding of a tensor of ``M`` bytes over ``N`` ranks. It includes the part that a
rank sends to itself. The *wire* bytes are those that one rank sends to the others.
"""

from __future__ import annotations

from fractions import Fraction

from torch import fx

from pab_compile.passes.graph import ir

from .detour import Crossing
from .shard import Ranks, Shard


def convention_bytes(crossing: Crossing, num_ranks: int) -> Fraction:
    """Bytes per rank of one re-sharding in the papers' convention; received bytes for a gather.

    A sum of all ranks counts as a ring would send it: all parts but one, twice.
    """
    if crossing.adds_up:
        return Fraction(2 * (num_ranks - 1) * crossing.num_bytes, num_ranks)
    times = 1 if crossing.target is not None else num_ranks - 1
    return Fraction(crossing.num_bytes * times, num_ranks)


def sent_bytes(crossing: Crossing, ranks: Ranks) -> int:
    """Bytes that a rank sends to the others in one re-sharding."""
    source, target = crossing.source, crossing.target
    if crossing.adds_up:
        return round(convention_bytes(crossing, ranks.size))
    if target is None:
        return gathered_bytes(crossing.node, source, ranks)
    mine = ranks.count(source.size)
    total = ir.num_bytes(crossing.node)
    if target.is_whole:
        per_pair = total * source.sharded // source.full // (source.size * target.size)
        away = target.size - ranks.count(target.size)
        return mine * per_pair * away
    per_row = total // (source.size * target.full)
    rows = [target.local(count) for count in ranks.counts(target.size)]
    return mine * per_row * (sum(rows) - rows[ranks.rank])


def gathered_bytes(node: fx.Node, shard: Shard, ranks: Ranks) -> int:
    """Bytes that a rank sends to the others when a tensor is gathered."""
    per_position = ir.num_bytes(node) * shard.sharded // shard.full // shard.size
    return per_position * ranks.count(shard.size) * (ranks.size - 1)
