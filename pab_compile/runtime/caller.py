"""Callers: which functions are running around a call of a model, and when they end.

The frame of a running function carries a mark, which dies with the frame. So two runs of a function
have different marks, and nothing keeps the variables of a function alive. The mark lies where a
debugger puts the function that it calls at every line (``f_trace``); without a debugger Python
never looks at it.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from types import CodeType, FrameType
from typing import Any

from .loops import Turn, loops_around

_SUSPENDABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Mark:
    """The mark of one run of a function.

    Args:
        can_wait: whether the function can be suspended: a generator or a coroutine.
        traced: what a debugger put into the frame.
    """

    def __init__(self, can_wait: bool, traced: Callable[..., Any] | None = None) -> None:
        self.can_wait = can_wait
        self._traced = traced

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Mark:
        """Pass on what a debugger is told."""
        if self._traced is not None:
            self._traced = self._traced(frame, event, argument)
        return self


Run = weakref.ref[Mark]
"""One run of a function. The reference is empty once the run is over."""


Position = Hashable
"""Where in its code a function calls: lines and columns, or an offset in the bytecode."""


@functools.lru_cache(maxsize=1024)
def position_in(code: CodeType, offset: int) -> Position:
    """Where an offset in the bytecode is in the source.

    One call has several offsets: of the instruction, or of the cache behind it.
    """
    if sys.version_info < (3, 11):
        return offset
    return next(itertools.islice(code.co_positions(), offset // 2, None), offset)


def is_suspended(run: Run) -> bool:
    """Whether a function that is not running now may go on: a generator or a coroutine."""
    mark = run()
    return mark is not None and mark.can_wait


class Callers:
    """The functions that run around a call, the innermost first.

    Args:
        frames: their frames. They are held until ``release``.

    Attributes:
        runs: the run of each.
        site: where in its code each of them is. Calls from one line have the same site at every
            step.
    """

    def __init__(self, frames: Sequence[FrameType] = ()) -> None:
        self.runs: tuple[Run, ...] = tuple(weakref.ref(_mark(frame)) for frame in frames)
        self.site: tuple[tuple[CodeType, Position], ...] = tuple(
            (frame.f_code, position_in(frame.f_code, frame.f_lasti)) for frame in frames
        )
        self._frames = tuple(frames)
        self._turns: dict[Run, Turn] | None = None

    def release(self) -> None:
        """Forget the frames. The runs stay known."""
        self._frames = ()

    def variables(self) -> Iterator[tuple[Run, Mapping[str, Any]]]:
        """The variables of every function, the innermost first."""
        for run, frame in zip(self.runs, self._frames, strict=False):
            yield run, dict(frame.f_locals)
            _forget_copy(frame)

    def turns(self) -> Mapping[Run, Turn]:
        """For each function whose call is in several loops, their turns."""
        if self._turns is None:
            self._turns = {}
            for run, frame in zip(self.runs, self._frames, strict=False):
                loops = loops_around(frame.f_code, frame.f_lasti)
                if len(loops) > 1:
                    self._turns[run] = Turn(loops, frame.f_locals)
                    _forget_copy(frame)
        return self._turns

    def depth(self, run: Run | None) -> int | None:
        """Position of a run among these; None if it is not among them."""
        return self.runs.index(run) if run in self.runs else None

    @property
    def lines(self) -> set[tuple[Run, Position]]:
        """Each run, and where in its code it is."""
        return {(run, position) for run, (_, position) in zip(self.runs, self.site, strict=True)}

    def innermost_in(self, others: Sequence[Run]) -> Run | None:
        """The innermost function that is also one of the others; None if there is none."""
        return next((run for run in self.runs if run in others), None)


NOBODY = Callers()


def _mark(frame: FrameType) -> Mark:
    found = frame.f_trace
    if not isinstance(found, Mark):
        can_wait = bool(frame.f_code.co_flags & _SUSPENDABLE)
        frame.f_trace = found = Mark(can_wait, found)
    return found


def _forget_copy(frame: FrameType) -> None:
    """Empty the copy of its variables that a frame keeps once somebody asked for them.

    The copy would keep tensors alive. Frames keep one up to Python 3.12. It stays as it is if
    somebody else holds it.
    """
    is_function = frame.f_code.co_flags & inspect.CO_OPTIMIZED
    if sys.version_info < (3, 13) and is_function and sys.getrefcount(frame.f_locals) <= 2:
        frame.f_locals.clear()
