"""Meet: all ranks of a mesh learn who shares what with whom, through the store of the processes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

import torch.distributed as dist

from pab_compile.errors import RanksError

from .mesh import Peers

_PAUSE = 0.02
Mesh = Mapping[int, tuple[tuple[int, ...], ...]]
"""Rank -> the ranks with which it shares tokens, and those with which it shares the batch."""


def meet(peers: Peers, store: dist.Store, timeout: timedelta) -> Mesh:
    """Compare with all ranks of a mesh which ranks share tokens and batch.

    Args:
        peers: the ranks with which this one shares tokens and batch.
        store: store of the default group.
        timeout: how long to wait for the others.

    Raises:
        RanksError: the ranks do not form a mesh, or one of them does not come.
    """
    members = _members(peers, store, timeout)
    mine = json.dumps([peers.tokens, peers.batch])
    said = _tell(store, "meetings", members, mine, timeout)
    axes = [tuple(tuple(axis) for axis in json.loads(each)) for each in said]
    mesh = dict(zip(members, axes, strict=True))
    for both in axes:
        for number, axis in enumerate(both):
            if any(rank not in mesh or mesh[rank][number] != axis for rank in axis):
                words = "; ".join(
                    f"rank {rank} shares tokens with {list(tokens)}, the batch with {list(batch)}"
                    for rank, (tokens, batch) in mesh.items()
                )
                raise RanksError(
                    f"The ranks do not form one mesh, so they would wait for one another: {words}. "
                    "Give every rank the same options."
                )
    return mesh


def _members(peers: Peers, store: dist.Store, timeout: timedelta) -> list[int]:
    """All ranks of the mesh. A rank knows only its own row and column."""
    if peers.num_ranks == dist.get_world_size():
        return list(range(peers.num_ranks))
    if len(peers.batch) == 1:
        return list(peers.tokens)
    rows = _tell(store, "columns", peers.batch, json.dumps(peers.tokens), timeout)
    return sorted({rank for row in rows for rank in json.loads(row)})


def shared(store: dist.Store, ranks: Sequence[int], what: str) -> dist.Store:
    """A part of a store for some ranks. They must ask for it the same number of times."""
    return dist.PrefixStore(new_name(store, ranks, what), store)


def new_name(store: dist.Store, ranks: Sequence[int], what: str) -> str:
    """A name for something of some ranks. They must ask for it the same number of times."""
    place = _place(ranks, what)
    return f"{place}/number {store.add(f'{place}/{dist.get_rank()}', 1)}"


def _place(ranks: Sequence[int], what: str) -> str:
    return f"pab/{what}/{'-'.join(map(str, ranks))}"


def _tell(
    store: dist.Store, what: str, ranks: Sequence[int], mine: str, timeout: timedelta
) -> list[str]:
    """Tell some ranks something. Returns what each of them tells.

    A rank that gives up takes back what it told, so that no other relies on it. Its next attempt is
    at the same meeting, to which the others may come.
    It does not block in the store, since threads of this process use it too.
    """
    me, place = dist.get_rank(), shared(store, ranks, what)
    keys = list(map(str, ranks))
    place.set(str(me), mine)
    end = time.monotonic() + timeout.total_seconds()
    while not place.check(keys) or not all(place.multi_get(keys)):
        if time.monotonic() > end:
            missing = [key for key in keys if not (place.check([key]) and place.get(key))]
            place.set(str(me), "")
            store.add(f"{_place(ranks, what)}/{me}", -1)
            raise RanksError(
                f"Rank {', '.join(missing)} of the mesh did not call the model within "
                f"the timeout of {timeout.total_seconds():.0f} s, or called it with another mesh. "
                "It may have failed before. Look at its log."
            )
        time.sleep(_PAUSE)
    return [each.decode() for each in place.multi_get(keys)]
