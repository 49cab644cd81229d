"""Sends: what each rank sends in a collective, and for which kind of site. For the statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.ops import is_collective
from pab_compile.passes.sites.site import Site

from .emit import Exchange
from .ring import PassedOn
from .shard import Ranks


@dataclass(frozen=True)
class Sends:
    """A collective of a sharded graph.

    Attributes:
        among: what its ranks share: ``tokens`` or ``batch``.
        rank: which of them the graph is for.
        size: how many there are.
        by_rank: bytes that each of them sends to the others; empty if that is unknown.
        kind: of the site that it belongs to; ``""`` if it belongs to none.
    """

    among: str
    rank: int
    size: int
    by_rank: tuple[int, ...] = ()
    kind: str = ""


def mark_sends(
    graph: fx.Graph,
    purposes: Mapping[fx.Node, Exchange | PassedOn],
    ranks: Ranks,
    among: str,
    sites: Sequence[Site],
) -> None:
    """Record at every collective what is known of it.

    Args:
        graph: of one rank.
        purposes: collective -> its purpose, which is the same on all ranks.
        ranks: the ranks.
        among: what they share.
        sites: of the graph.
    """
    kind_of = {node: site.kind for site in reversed(sites) for node in site.region}
    for node in filter(is_collective, graph.nodes):
        if node in purposes:
            found = Sends(among, ranks.rank, ranks.size, _by_rank(node, purposes[node], ranks))
        elif (before := ir.sends(node)) is not None:
            found = replace(before, by_rank=())  # its tensor may be a part of what it was
        else:
            continue
        ir.set_sends(node, replace(found, kind=kind_of.get(node, "")))


def _by_rank(node: fx.Node, purpose: Exchange | PassedOn, ranks: Ranks) -> tuple[int, ...]:
    every, (tensor, *_) = range(ranks.size), ir.tensors(node)
    if isinstance(purpose, Exchange) and purpose.source is None:  # as a ring adds up
        return (sum_bytes(ir.num_bytes(node), ranks.size),) * ranks.size
    return tuple(
        sum(purpose.elements(rank, other, ranks) for other in every if other != rank)
        * tensor.element_size()
        for rank in every
    )


def sum_bytes(num_bytes: int, num_ranks: int) -> int:
    """Bytes that a rank sends where a ring adds up tensors of all ranks."""
    return round(2 * (num_ranks - 1) * num_bytes / num_ranks)
