"""Program store: the programs of one Dynamo graph, of which the least recently used are dropped.

A sampler may come with any number of sizes, and each has a program. Dropping one is never wrong: it
is compiled again when it is needed, and gets the cache entries that it had.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Hashable

from pab_compile.runtime.generation import Generation

from .runnable import Runnable

MAX_PROGRAMS = 64
MAX_BYTES = 2**30
"""Of the constants that programs hold, such as masks and position tables."""


class ProgramStore:
    """Programs by what they were compiled for.

    Args:
        limit: how many are kept.
        max_bytes: most bytes of their constants.

    Programs of generations that run, and the newest one, are kept beyond both.
    """

    def __init__(self, limit: int | None = None, max_bytes: int | None = None) -> None:
        self._limit = MAX_PROGRAMS if limit is None else limit
        self._max_bytes = MAX_BYTES if max_bytes is None else max_bytes
        self._programs: OrderedDict[Hashable, Runnable] = OrderedDict()
        self._generations: weakref.WeakKeyDictionary[Runnable, weakref.WeakSet[Generation]]
        self._generations = weakref.WeakKeyDictionary()

    def find(self, key: Hashable) -> Runnable | None:
        """The program for a key, which is now the most recently used; None if there is none."""
        try:
            program = self._programs[key]
            self._programs.move_to_end(key)
        except KeyError:  # another thread may just have dropped it
            return None
        return program

    def add(self, key: Hashable, program: Runnable, may_drop: bool = True) -> Runnable:
        """Keep a program, unless there is one for its key, and drop those beyond the limit.

        Args:
            key: what it was compiled for.
            program: the program.
            may_drop: whether any may be dropped. Ranks that compile together must not: each would
                drop others.

        Returns:
            The program for the key.
        """
        kept = self._programs.setdefault(key, program)
        if may_drop:
            self._drop(key)
        return kept

    def ran(self, program: Runnable, generation: Generation) -> None:
        """Note that a program ran in a generation, so it is needed while that goes on."""
        self._generations.setdefault(program, weakref.WeakSet()).add(generation)

    def _is_in_use(self, program: Runnable) -> bool:
        return any(not generation.closed for generation in self._generations.get(program, ()))

    def _num_bytes(self) -> int:
        """Bytes of all constants. Programs of one graph share them."""
        parts = (program.part for program in self._programs.values())
        held = (tensor for part in parts if part for tensor in part.graph_module.buffers())
        return sum({id(tensor): tensor.nbytes for tensor in held}.values())

    def _drop(self, newest: Hashable) -> None:
        for key in list(self._programs):
            if len(self._programs) <= self._limit and self._num_bytes() <= self._max_bytes:
                break
            if key != newest and not self._is_in_use(self._programs[key]):
                del self._programs[key]

    def __len__(self) -> int:
        """How many programs there are."""
        return len(self._programs)
