"""Traffic: the bytes that ranks send under a layout.

There are two ways of counting. The *convention* of the papers (arXiv 2403.10266, 2408.12588) counts
``M / N`` per re-sharding of a tensor of ``M`` bytes over ``N`` ranks. It includes the part that a
rank sends to itself. The *wire* bytes are those that one rank sends to the others.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from torch import fx

from pab_compile.passes.graph import ir

from .detour import Crossing
from .emit import Exchange
from .ring import PassedOn, Ring, elements_of_row
from .shard import Ranks, Shard
from .verdict import shape_of


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
    if crossing.ring is not None:
        return _sent_in_ring(crossing, crossing.ring, ranks)
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


def _sent_in_ring(crossing: Crossing, ring: Ring, ranks: Ranks) -> int:
    """Bytes that a rank sends to the others for an attention in rings."""
    node, source, target = crossing.node, crossing.source, crossing.target
    shape, mine, value = list(shape_of(node)), ring.place(ranks.rank), ir.tensor(node)
    assert target is not None and value is not None
    if crossing.hop:
        row = elements_of_row(shape, source)
        purpose = PassedOn(ring, crossing.hop, source.size, row, shape[source.dim - 1])
        sent = purpose.elements(ranks.rank, ring.following(ranks.rank), ranks)
        return sent * value.element_size()
    among = ring.sharing(ranks)
    is_back = source.dim < target.dim
    tokens = ring.part(target if is_back else source, ranks, mine)
    bare = tokens if is_back else replace(tokens, before=0, after=0)
    shape[tokens.dim] = bare.full
    exchange = Exchange(tuple(shape), *((source, bare) if is_back else (bare, target)), among)
    others = [rank for rank in range(ranks.size) if rank != ranks.rank]
    return sum(exchange.elements(ranks.rank, n, ranks) for n in others) * value.element_size()


def gathered_bytes(node: fx.Node, shard: Shard, ranks: Ranks) -> int:
    """Bytes that a rank sends to the others when a tensor is gathered."""
    per_position = ir.num_bytes(node) * shard.sharded // shard.full // shard.size
    return per_position * ranks.count(shard.size) * (ranks.size - 1)
