"""The team: the ranks that run one model together; they agree, and none waits for a dead one.

A team of all processes has a process group of its own, so that it can be closed without touching
the caller's: ranks that wait in an exchange for one that has failed are woken by its connections
going away. (A team of some processes is woken by the group's timeout.) What happened they read in
the group's store, which costs nothing while nothing happens.
"""

from __future__ import annotations

import json
import time
import weakref

import torch.distributed as dist

from pab_compile.passes.parallel.shard import Ranks

from .mesh import RanksError

PATIENCE = 5.0
"""Seconds that a failed rank gives the others to fail in the same call, before it leaves them."""
_PAUSE = 0.05
_CLOSED = "closed"
_teams: weakref.WeakKeyDictionary[dist.ProcessGroup, Team] = weakref.WeakKeyDictionary()
_teams_of_models: weakref.WeakKeyDictionary[dist.ProcessGroup, Team] = weakref.WeakKeyDictionary()


def team_of(group: dist.ProcessGroup | None, exchanges: bool = True) -> Team | None:
    """The team of a process group, made when first asked for; None where one rank is alone.

    Args:
        group: as the user's options or the model name it; all its ranks must ask alike.
        exchanges: whether it is this compiler that lets the ranks exchange, rather than the model.
    """
    if group is None or group.size() == 1:
        return None
    teams = _teams if exchanges else _teams_of_models
    if group not in teams:
        teams[group] = Team(group, exchanges)
    return teams[group]


class Team:
    """The ranks of a process group, in a group of their own where these are all processes.

    Args:
        group: the caller's process group.
        exchanges: whether the ranks exchange as this compiler says. Those of a model that is
            parallel by itself do so in groups of the model's, and only agree here.

    Attributes:
        exchanges: as given.
        ranks: the ranks, for the graphs.
        closed: why the team cannot go on; ``""`` while it can.

    Raises:
        RanksError: not all ranks make a team.
    """

    def __init__(self, group: dist.ProcessGroup, exchanges: bool = True) -> None:
        store, rank = group.get_group_store(), group.rank()
        number = store.add(f"pab/teams/{rank}", 1)  # the same on all ranks
        self._store = dist.PrefixStore(f"pab/{number}", store)
        self._rank, self._size = rank, group.size()
        self._agreements = self._calls = 0
        self._compared: list[object] = []
        self.exchanges = exchanges
        self.closed = ""
        self._say("here", "")
        self._group: dist.ProcessGroup | None = None
        if (
            exchanges and self._size == dist.get_world_size()
        ):  # torch needs all processes to make a group
            own = dist.new_group(list(range(self._size)))
            assert isinstance(own, dist.ProcessGroup)
            self._group = group = own
        self.ranks = Ranks(self._size, group.rank(), group.group_name)

    def agree(self, found: str, error: BaseException | None = None) -> None:
        """Compare with all ranks what they found; returns where all found the same.

        Args:
            found: this rank's fingerprint.
            error: what this rank failed with instead.

        Raises:
            RanksError: some rank failed, found something else or does not come; says which, on
                every rank. A rank that failed raises its own error.
        """
        self._agreements += 1
        reason = None if error is None else _in_words(error)
        said = self._say(f"agreement/{self._agreements}", json.dumps([found, reason]))
        if error is not None:
            raise error
        prints, reasons = zip(*map(json.loads, said), strict=True)
        for rank, reason in enumerate(reasons):
            if reason is not None:
                raise RanksError(f"Rank {rank} of the mesh could not compile the model: {reason}")
        if len(set(prints)) > 1:
            raise RanksError(
                "The ranks of the mesh do not run the same program, so they would wait for one "
                "another for ever: options, plan, model or sizes of the inputs differ. "
                f"Fingerprints by rank: {', '.join(prints)}. Compile and call the model in the "
                "same way on every rank."
            )

    def is_first(self, compilation: object) -> bool:
        """Whether a compilation is seen for the first time.

        Sizes may differ between the ranks of a model that is parallel by itself, so that one of
        them may compile again where another need not: they can compare their first graphs only.
        """
        if any(known is compilation for known in self._compared):
            return False
        self._compared.append(compilation)
        return True

    def _say(self, what: str, mine: str) -> list[str]:
        """Tell all ranks something; what each of them says."""
        self._store.set(f"{what}/{self._rank}", mine)
        said = []
        for rank in range(self._size):
            try:
                said.append(self._store.get(f"{what}/{rank}").decode())
            except dist.DistError as error:
                raise RanksError(
                    f"Rank {rank} of the mesh did not come to where all ranks compare what they "
                    "compile, within the timeout of the group's store. It may have failed before, "
                    "or compiled the model without this mesh, or not at all. Look at its log."
                ) from error
        return said

    def begin(self) -> None:
        """Begin a call of the model."""
        if self.closed:
            raise RanksError(
                f"{self.closed}. Start the processes anew, or form another process group, to go on."
            )
        self._calls += 1

    def fail(self, error: BaseException) -> None:
        """Report a call that failed; returns where the error is this rank's own.

        Where all ranks fail in the same call, the team lives on. Otherwise the others wait for
        this rank for ever, and the group is closed.

        Raises:
            RanksError: another rank failed, and this one only since it waited for it.
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
        except dist.DistError:  # the store is gone with the rank that kept it
            self.closed = f"The ranks of the mesh cannot be reached any more: {_in_words(error)}"
        self._close()
        if not self.closed.startswith(f"Rank {self._rank} "):
            raise RanksError(self.closed) from error

    def _close(self) -> None:
        """Leave the group, which wakes whoever waits for this rank in it."""
        group, self._group = self._group, None
        if group is not None and dist.is_initialized():
            dist.destroy_process_group(group)


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
