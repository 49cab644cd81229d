"""The team: the ranks that run one model together. They agree, and none waits for a failed one.

A team has its own process groups, so that it can leave them without closing the caller's. A rank
that fails leaves them. That wakes the ranks that wait for it, and they leave theirs. At the next
call all ranks meet and make the groups anew. The ranks read what happened in the store of the
processes.
"""

from __future__ import annotations

import json
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist

from pab_compile.errors import RanksError
from pab_compile.passes.parallel.shard import Grid, Ranks

from .course import Course
from .groups import OwnGroups, timeout_of
from .halves import Halves
from .meet import Mesh, meet, shared
from .mesh import Peers
from .watch import Doing, Question, Watcher, Whereabouts
from .words import Words, difference, in_words, unreachable

PATIENCE = 5.0
"""Seconds for which a failed rank waits for the others to fail in the same call too."""
_ASK_EVERY = 1.0
_SILENCE = 3.0
_LONG_SILENCE = 10.0
_PAUSE = 0.05
_CLOSED = "closed"
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
    teams = _teams.setdefault(world, {})
    if (peers, exchanges) not in teams:
        mesh = meet(peers, world.get_group_store(), timeout_of(world))
        teams[peers, exchanges] = Team(peers, mesh, world, exchanges)
    return teams[peers, exchanges]


@dataclass(frozen=True)
class _End:
    """Why a team left its groups.

    Attributes:
        rank: the rank that found the reason.
        words: the reason.
        is_own: whether that rank raises an error of its own.
        gone: ranks that did not answer.
    """

    rank: int
    words: str
    is_own: bool = False
    gone: tuple[int, ...] = ()


class Team:
    """The ranks that run a model together, with their own groups where that is possible.

    Args:
        peers: the ranks with which this one shares tokens and batch.
        mesh: the same for every rank.
        world: the default group.
        exchanges: whether this compiler makes the ranks exchange. A model that is parallel by
            itself exchanges in its own groups, and its ranks only agree here.

    Attributes:
        exchanges: as given.
        grid: the ranks, for the graphs.
        halves: the ranks of its column, if they share the calls of a step.
        here: what this rank is doing.
        course: what the ranks agreed on.
        place: of this rank among those of the team.
        choices: what the ranks chose together for all later calls.
        number: of this rank in the default group. Messages say these numbers.
    """

    def __init__(
        self, peers: Peers, mesh: Mesh, world: dist.ProcessGroup, exchanges: bool = True
    ) -> None:
        me, members = dist.get_rank(), list(mesh)
        self._rank, self._size = members.index(me), len(members)
        self.number, self._numbers = me, members
        self.place = self._rank
        self._shared = shared(world.get_group_store(), members, "teams")
        self._timeout = timeout_of(world)
        self._compared: list[object] = []
        self.choices: list[object] = []
        self.exchanges = exchanges
        self.here = Whereabouts()
        self.course = Course()
        self._epoch = 0
        self._begin_epoch()
        self._own: OwnGroups | None = None
        names = list(peers.groups)
        mine = [list(peers.tokens), list(peers.batch)]
        if exchanges and OwnGroups.are_possible(mesh):
            mine = [sorted(axis) for axis in mine]
            try:
                self._own = OwnGroups(mesh, self._timeout)
            except RuntimeError as error:
                raise RanksError(
                    "The ranks of the mesh could not form their groups within the timeout of "
                    f"{self._timeout.total_seconds():.0f} s: {in_words(error)}. A rank may have "
                    "failed before. Start the processes anew."
                ) from error
            names = self._own.names
        tokens, batch = (
            Ranks(len(axis), axis.index(me), name) for axis, name in zip(mine, names, strict=True)
        )
        self.grid = Grid(tokens, batch)
        self.halves = Halves(batch)
        self._watcher = Watcher(self._shared, self._rank, self._size, self.here)
        weakref.finalize(self, self._watcher.stop)

    def _begin_epoch(self) -> None:
        """Count calls and agreements anew, since ranks may have failed at different ones."""
        self._store = dist.PrefixStore(f"epoch {self._epoch}", self._shared)
        self._agreements = self._calls = self.here.runs = 0
        self._end: _End | None = None

    def can_send(self, tensor: torch.Tensor) -> bool:
        """Whether the groups of the team take such a tensor."""
        return tensor.is_cuda or dist.get_backend() != "nccl"

    def agree(
        self, words: Words, error: BaseException | None = None, may_begin: bool = False
    ) -> None:
        """Compare what all ranks say of a call. Returns if it is the same.

        Args:
            words: what this rank says.
            error: the error with which this rank failed, if it did.
            may_begin: as in ``compare``.

        Raises:
            RanksError: a rank failed, says something else, or does not answer. Every rank raises
                it, and the message names the rank. A rank that failed raises its own error.
        """
        said = self.compare(words, error, may_begin)
        if any(other != said[0] for other in said):
            raise RanksError(self.difference(said))

    def compare(
        self, words: Words, error: BaseException | None = None, may_begin: bool = False
    ) -> list[Words]:
        """What all ranks say of a call.

        Args:
            words: what this rank says.
            error: the error with which this rank failed, if it did.
            may_begin: whether the call begins a generation. Then it may follow a failure that this
                rank has not noticed, since it was outside of the model.

        Raises:
            RanksError: as ``agree``, unless only the words differ.
        """
        if may_begin and self._end is None and self._store_has([_CLOSED]):
            self._learn_end()
            self.begin()
        self._agreements += 1
        reason = None if error is None else in_words(error)
        before, self.here.last = self.here.doing, words.get("call", self.here.last)
        self.here.now(Doing.AGREEING)
        try:
            said = self._tell(f"agreement/{self._agreements}", json.dumps([words, reason]))
        finally:
            self.here.now(before)
        self._forget(f"agreement/{self._agreements - 1}")
        if error is not None:
            raise error
        for rank, (_, reason) in enumerate(map(json.loads, said)):
            if reason is not None:
                raise RanksError(
                    f"Rank {self._numbers[rank]} of the mesh could not compile the model: {reason}"
                )
        return [json.loads(each)[0] for each in said]

    def difference(self, said: Sequence[Words]) -> str:
        """The message for ranks that say different things."""
        return difference(said, self._numbers)

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
        """Begin a call of the model. After a failure, meet the other ranks and begin anew.

        Raises:
            RanksError: the ranks cannot begin anew, or one of them does not come.
        """
        if self._end is not None:
            if self._own is None:
                raise RanksError(
                    f"{self._end.words}. These ranks exchange in groups of the caller, which "
                    "cannot be made anew here: start the processes anew."
                )
            self._meet_again(self._end)
        self._calls += 1

    def run(self) -> None:
        """Note that a run of a program begins, in which the ranks exchange."""
        self.here.runs += 1
        self.here.now(Doing.RUNNING)

    def leave(self) -> None:
        """Note that the call is over."""
        self.here.now(Doing.OUTSIDE)

    def fail(self, error: BaseException) -> None:
        """Report a call that failed. Returns if the error is this rank's own.

        If all ranks fail in the same call, the team continues. Otherwise the others would wait for
        this rank for ever, so it leaves the groups.

        Raises:
            RanksError: another rank failed, and this one failed only because it waited for it.
        """
        if self._end is not None or isinstance(error, RanksError):  # every rank raises that
            return
        keys = [f"failed/{self._calls}/{rank}" for rank in range(self._size)]
        try:
            self._store.set(keys[self._rank], "")
            end, question = time.monotonic() + PATIENCE, self._watcher.ask()
            while not self._store.check([_CLOSED]):
                failed = [rank for rank, key in enumerate(keys) if self._store.check([key])]
                if len(failed) == self._size:
                    return
                question.answers()
                gone = set(question.silent()) - set(failed) if question.age > _SILENCE else set()
                if time.monotonic() > end or len(gone) + len(failed) == self._size:
                    self._announce(error, question, failed)
                time.sleep(_PAUSE)
        except RuntimeError:
            self._end = _End(-1, unreachable(error))
        self._learn_end()
        assert self._end is not None
        if self._end.rank != self._rank or not self._end.is_own:
            raise RanksError(self._end.words) from error

    def _announce(self, error: BaseException, question: Question, failed: Sequence[int]) -> None:
        """Tell the others that this rank failed, and what the others did meanwhile."""
        answers = question.answers()
        gone = [rank for rank in question.silent() if rank not in failed]
        away = [
            f"rank {self._numbers[rank]} {answer.words}"
            for rank, answer in answers.items()
            if rank not in failed and answer.doing in (Doing.OUTSIDE, Doing.COMPILING)
        ]
        failure = f"failed in a call of the model: {in_words(error)}"
        if gone:  # that is probably why this rank failed
            words = f"{self._no_answer(gone)} Then rank {self.number} {failure}"
        else:
            words = f"Rank {self.number} of the mesh {failure}"
        if away:
            words = f"{words}. Meanwhile {', '.join(away)}"
        self._close(words, gone=gone, is_own=not (away or gone))

    def _no_answer(self, ranks: Sequence[int]) -> str:
        which = f"Rank {', '.join(str(self._numbers[rank]) for rank in ranks)} of the mesh"
        return f"{which} does not answer: its process ended or hangs."

    def _close(self, words: str, gone: Sequence[int] = (), is_own: bool = False) -> None:
        """Say why the team ends, unless another rank has said why."""
        found = _End(self._rank, words, is_own, tuple(gone))
        self._store.compare_set(_CLOSED, "", json.dumps(asdict(found)))

    def _learn_end(self) -> None:
        """Read why the team ended, and leave the groups."""
        if self._end is None:
            try:
                self._end = _End(**json.loads(self._store.get(_CLOSED)))
            except RuntimeError as error:
                self._end = _End(-1, unreachable(error))
        if self._own is not None:
            self._own.leave()

    def _meet_again(self, before: _End) -> None:
        """Make the groups anew, with all ranks."""
        assert self._own is not None
        self._epoch += 1
        self._begin_epoch()
        while self._store_has([_CLOSED]):  # the others waited here for this rank, and gave up
            self._epoch += 1
            self._begin_epoch()
        try:
            self._tell("again", "")
        except RanksError as error:
            self._end = self._end or before
            raise RanksError(
                f"{before.words}. The ranks could not begin anew: {error} They try again at the "
                "next call. If a process has ended, start all anew."
            ) from error
        self._own.make()

    def _tell(self, what: str, mine: str) -> list[str]:
        """Tell all ranks something. Returns what each of them tells.

        Raises:
            RanksError: a rank does not come.
        """
        try:
            return self._told(what, mine)
        except RanksError:
            self._learn_end()
            raise
        except RuntimeError as error:
            self._end = _End(-1, unreachable(error))
            self._learn_end()
            raise RanksError(self._end.words) from error

    def _told(self, what: str, mine: str) -> list[str]:
        keys = [f"{what}/{rank}" for rank in range(self._size)]
        self._store.set(keys[self._rank], mine)
        now = time.monotonic()
        late, ask = now + self._timeout.total_seconds(), now + _ASK_EVERY
        question: Question | None = None
        pause = 0.001
        while True:
            if self._store.check([_CLOSED]):
                raise RanksError(_End(**json.loads(self._store.get(_CLOSED))).words)
            if self._store.check(keys):
                return [each.decode() for each in self._store.multi_get(keys)]
            now = time.monotonic()
            if question is not None and self._is_coming(question, keys, now > late):
                late = now + self._timeout.total_seconds()
            if now > ask:
                if question is None or not question.silent() or question.age > _LONG_SILENCE:
                    question = self._watcher.ask()
                ask = now + _ASK_EVERY
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE)

    def _is_coming(self, question: Question, keys: Sequence[str], is_late: bool) -> bool:
        """Whether a missing rank is compiling. Ends the team if one cannot come."""
        answers = question.answers()
        missing = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
        for rank in missing:
            number, answer = self._numbers[rank], answers.get(rank)
            if answer is None:
                if question.age > min(_LONG_SILENCE, self._timeout.total_seconds()):
                    self._close(self._no_answer([rank]), gone=[rank])
            elif answer.doing is Doing.RUNNING and answer.runs > self.here.runs:
                self._close(
                    "The ranks of the mesh are at different calls, so they would wait for one "
                    f"another for ever: rank {self.number}: {self.here.last}; rank {number} "
                    f"{answer.words}. Every rank must make the same calls of the model in the same "
                    "order, with the same inputs, weights and number of steps."
                )
            elif is_late and answer.doing is not Doing.COMPILING:
                waited = f"{self._timeout.total_seconds():.0f} s"
                self._close(
                    f"Rank {number} of the mesh did not come within the timeout of {waited}: it "
                    f"{answer.words}. Rank {self.number} waited at: {self.here.last}."
                )
        coming = [answers[rank].doing for rank in missing if rank in answers]
        return Doing.COMPILING in coming

    def _forget(self, what: str) -> None:
        """Delete what this rank told before, which all have read. Not every store can."""
        with suppress(RuntimeError):
            self._store.delete_key(f"{what}/{self._rank}")

    def _store_has(self, keys: list[str]) -> bool:
        try:
            return self._store.check(keys)
        except RuntimeError:
            return False
