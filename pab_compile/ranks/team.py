"""The team: the ranks that run one model together. They agree, and none waits for a failed one.

A team of all processes has its own process groups, so that it can close them without closing the
caller's. A rank that fails closes its connections. That wakes the ranks that wait for it, and they
close theirs. A team of some processes is woken by the timeout of the group. The ranks read what
happened in the store of the processes. This costs nothing unless a rank fails.
"""

from __future__ import annotations

import json
import time
import weakref
from collections.abc import Mapping, Sequence

import torch.distributed as dist

from pab_compile.errors import RanksError
from pab_compile.passes.parallel.shard import Grid, Ranks

from .mesh import Peers

PATIENCE = 5.0
"""Seconds for which a failed rank waits for the others to fail in the same call too."""
_PAUSE = 0.05
_CLOSED = "closed"
Mesh = Mapping[int, tuple[tuple[int, ...], ...]]
"""Rank -> the ranks with which it shares tokens, and those with which it shares the batch."""
_teams: weakref.WeakKeyDictionary[dist.ProcessGroup, dict[tuple[Peers, bool], Team]]
_teams = weakref.WeakKeyDictionary()


def team_of(peers: Peers | None, exchanges: bool = True) -> Team | None:
    """The team of some ranks, made at the first call; None for a single rank.

    Args:
        peers: the ranks that the user's options or the model name. All ranks must call alike.
        exchanges: whether this compiler makes the ranks exchange. If not, the model does.

    Raises:
        RanksError: a rank does not call, or the ranks do not form a mesh.
    """
    if peers is None or peers.num_ranks == 1:
        return None
    world = dist.group.WORLD
    assert world is not None
    store = world.get_group_store()
    mesh = _meet(peers, store)
    teams = _teams.setdefault(world, {})
    if (peers, exchanges) not in teams:
        teams[peers, exchanges] = Team(peers, mesh, store, exchanges)
    return teams[peers, exchanges]


class Team:
    """The ranks that run a model together. If these are all processes, they get their own groups.

    Args:
        peers: the ranks with which this one shares tokens and batch.
        mesh: the same for every rank.
        store: store of the default group.
        exchanges: whether this compiler makes the ranks exchange. A model that is parallel by
            itself exchanges in its own groups, and its ranks only agree here.

    Attributes:
        exchanges: as given.
        grid: the ranks, for the graphs.
        closed: why the team cannot continue; ``""`` while it can.
    """

    def __init__(self, peers: Peers, mesh: Mesh, store: dist.Store, exchanges: bool = True) -> None:
        me, members = dist.get_rank(), list(mesh)
        self._rank, self._size = members.index(me), len(members)
        self._store = _shared(store, members, "teams")
        self._agreements = self._calls = 0
        self._compared: list[object] = []
        self.exchanges = exchanges
        self.closed = ""
        self._groups: list[dist.ProcessGroup] = []
        names = list(peers.groups)
        mine = [list(peers.tokens), list(peers.batch)]
        if exchanges and self._size == dist.get_world_size():  # new_group must be called by all
            mine = [sorted(axis) for axis in mine]
            for number in range(2):
                for axis in dict.fromkeys(tuple(sorted(axes[number])) for axes in mesh.values()):
                    own = dist.new_group(list(axis)) if len(axis) > 1 else None
                    if list(axis) == mine[number] and isinstance(own, dist.ProcessGroup):
                        names[number] = own.group_name
                        self._groups.append(own)
        tokens, batch = (
            Ranks(len(axis), axis.index(me), name) for axis, name in zip(mine, names, strict=True)
        )
        self.grid = Grid(tokens, batch)

    def agree(self, found: str, error: BaseException | None = None) -> None:
        """Compare the fingerprints of all ranks. Returns if they are equal.

        Args:
            found: this rank's fingerprint.
            error: the error with which this rank failed, if it did.

        Raises:
            RanksError: a rank failed, has another fingerprint, or does not answer. Every rank
                raises it, and the message names the rank. A rank that failed raises its own error.
        """
        self._agreements += 1
        reason = None if error is None else _in_words(error)
        what = f"agreement/{self._agreements}"
        said = _tell(self._store, what, self._rank, self._size, json.dumps([found, reason]))
        if error is not None:
            raise error
        prints, reasons = zip(*map(json.loads, said), strict=True)
        for rank, reason in enumerate(reasons):
            if reason is not None:
                raise RanksError(f"Rank {rank} of the mesh could not compile the model: {reason}")
        if len(set(prints)) > 1:
            raise RanksError(
                "The ranks of the mesh do not run the same program, so they would wait for one "
                "another for ever. Options, plan, model or sizes of the inputs differ. "
                f"Fingerprints by rank: {', '.join(prints)}. Compile and call the model in the "
                "same way on every rank."
            )

    def is_first(self, compilation: object) -> bool:
        """Whether a compilation is new.

        Sizes may differ between the ranks of a model that is parallel by itself. Then one rank may
        compile again and another may not. So they can compare only their first graphs.
        """
        if any(known is compilation for known in self._compared):
            return False
        self._compared.append(compilation)
        return True

    def begin(self) -> None:
        """Begin a call of the model."""
        if self.closed:
            raise RanksError(
                f"{self.closed}. Start the processes anew, or make another process group."
            )
        self._calls += 1

    def fail(self, error: BaseException) -> None:
        """Report a call that failed. Returns if the error is this rank's own.

        If all ranks fail in the same call, the team continues. Otherwise the others would wait for
        this rank for ever, so the groups are closed.

        Raises:
            RanksError: another rank failed, and this one failed only because it waited for it.
        """
        if self.closed:
            return
        store, key = self._store, f"failed/{self._calls}"
        keys = [f"{key}/{rank}" for rank in range(self._size)]
        try:
            store.set(keys[self._rank], "")
            end = time.monotonic() + PATIENCE
            while not store.check([_CLOSED]):
                if store.check(keys):
                    return
                if time.monotonic() > end:
                    mine = f"Rank {self._rank} of the mesh failed in a call of the model: "
                    store.compare_set(_CLOSED, "", mine + _in_words(error))
                time.sleep(_PAUSE)
            self.closed = store.get(_CLOSED).decode()
        except dist.DistError:  # the rank that runs the store has stopped
            self.closed = (
                f"The other ranks of the mesh cannot be reached any more: {_in_words(error)}"
            )
        self._close()
        if not self.closed.startswith(f"Rank {self._rank} "):
            raise RanksError(self.closed) from error

    def _close(self) -> None:
        """Leave the groups. That wakes the ranks that wait in them for this rank."""
        groups, self._groups = self._groups, []
        for group in groups:
            if dist.is_initialized():
                dist.destroy_process_group(group)


def _meet(peers: Peers, store: dist.Store) -> Mesh:
    """Compare with all ranks of a mesh which ranks share tokens and batch."""
    members = _members(peers, store)
    me = members.index(dist.get_rank())
    place = _shared(store, members, "meetings")
    said = _tell(place, "here", me, len(members), json.dumps([peers.tokens, peers.batch]))
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


def _members(peers: Peers, store: dist.Store) -> list[int]:
    """All ranks of the mesh. A rank knows only its own row and column."""
    if peers.num_ranks == dist.get_world_size():
        return list(range(peers.num_ranks))
    if len(peers.batch) == 1:
        return list(peers.tokens)
    place, me = _shared(store, peers.batch, "columns"), peers.batch.index(dist.get_rank())
    rows = _tell(place, "row", me, len(peers.batch), json.dumps(peers.tokens))
    return sorted({rank for row in rows for rank in json.loads(row)})


def _shared(store: dist.Store, ranks: Sequence[int], what: str) -> dist.Store:
    """A part of a store for some ranks. They must ask for it the same number of times."""
    place = f"pab/{what}/{'-'.join(map(str, ranks))}"
    number = store.add(f"{place}/{dist.get_rank()}", 1)
    return dist.PrefixStore(f"{place}/number {number}", store)


def _tell(store: dist.Store, what: str, index: int, num: int, mine: str) -> list[str]:
    """Tell all ranks of a shared store something. Returns what each of them tells."""
    store.set(f"{what}/{index}", mine)
    said = []
    for rank in range(num):
        try:
            said.append(store.get(f"{what}/{rank}").decode())
        except dist.DistError as error:
            raise RanksError(
                f"Rank {rank} of the mesh did not tell the others what it compiled, within the "
                "timeout of the processes' store. It may have failed before, or compiled the model "
                "with another mesh, or not at all. Look at its log."
            ) from error
    return said


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
