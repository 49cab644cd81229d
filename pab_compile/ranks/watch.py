"""Watch: where each rank is, told by a thread while the rank itself computes or waits.

A rank that waits in a collective cannot answer. So every rank has a thread that looks for questions
in the store of the processes, twice a second. A rank that waits for others for a second asks. Thus
nothing is written per step.
"""

from __future__ import annotations

import atexit
import json
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch.distributed as dist

_PERIOD = 0.5


class Doing(str, Enum):
    """What a rank is doing."""

    OUTSIDE = "is outside of the model"
    AGREEING = "waits for the others to agree"
    COMPILING = "compiles the model"
    RUNNING = "runs the model"


@dataclass
class Whereabouts:
    """Where a rank is. Its calls write it, and its thread reads it.

    Attributes:
        doing: what it is doing.
        since: time at which that began.
        runs: number of runs of a program that it began.
        last: its last call, in words.
    """

    doing: Doing = Doing.OUTSIDE
    since: float = 0.0
    runs: int = 0
    last: str = ""

    def now(self, doing: Doing) -> None:
        """Note what the rank is doing from now on."""
        self.doing, self.since = doing, time.monotonic()

    def in_words(self) -> str:
        """What another rank is told."""
        since = f" since {time.monotonic() - self.since:.0f} s" if self.since else ""
        return f"{self.doing.value}{since}" + (f", its last call: {self.last}" if self.last else "")


@dataclass(frozen=True)
class Answer:
    """What a rank says of itself."""

    doing: Doing
    runs: int
    words: str


class Watcher:
    """Answers the questions of other ranks, and asks them.

    Args:
        store: the store that the ranks share.
        rank: this rank.
        size: number of ranks.
        here: where this rank is.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, here: Whereabouts) -> None:
        self._store = dist.PrefixStore("watch", store)
        self._rank, self._size, self._here = rank, size, here
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="pab ranks", daemon=True)
        self._thread.start()
        stop = weakref.WeakMethod(self.stop)
        atexit.register(lambda: (found := stop()) and found())

    def ask(self) -> Question:
        """Ask all ranks where they are."""
        number = self._store.add("asked", 1)
        self._store.set(f"question/{number}", "")
        others = [rank for rank in range(self._size) if rank != self._rank]
        return Question(self._store, number, others)

    def stop(self) -> None:
        """End the thread, before Python or the processes' store ends."""
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=2)

    def _serve(self) -> None:
        number = 1
        while not self._stopped.wait(_PERIOD):
            try:
                while self._store.check([f"question/{number}"]):
                    here = self._here
                    answer = (here.doing.name, here.runs, here.in_words())
                    self._store.set(f"answer/{number}/{self._rank}", json.dumps(answer))
                    number += 1
            except (dist.DistError, RuntimeError):  # the process with the store has ended
                return


class Question:
    """A question to other ranks.

    Args:
        store: the store of the questions.
        number: of the question.
        ranks: who is asked.
    """

    def __init__(self, store: dist.Store, number: int, ranks: Sequence[int]) -> None:
        self._store, self._number, self._ranks = store, number, ranks
        self._asked = time.monotonic()
        self._answers: dict[int, Answer] = {}

    @property
    def age(self) -> float:
        """Seconds since it was asked."""
        return time.monotonic() - self._asked

    def answers(self) -> dict[int, Answer]:
        """The answers so far, by rank."""
        for rank in self.silent():
            key = f"answer/{self._number}/{rank}"
            if self._store.check([key]):
                doing, runs, words = json.loads(self._store.get(key))
                self._answers[rank] = Answer(Doing[doing], runs, words)
        return self._answers

    def silent(self) -> list[int]:
        """The ranks that have not answered so far."""
        return [rank for rank in self._ranks if rank not in self._answers]
