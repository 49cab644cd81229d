"""Progress of compilation: a bar on a terminal, a line in a notebook, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress

_log = logging.getLogger(__name__)
_LONG = 2.0
"""Seconds of a piece from which on a log line says that it was compiled."""
_NUMBERS, _LEAST_BAR, _MOST_BAR = 20, 6, 40
"""Columns of a terminal: for the numbers beside a bar, and for the bar."""
_has_bar: ContextVar[bool] = ContextVar("_has_bar", default=False)


class _Drawn(Protocol):
    """Something that shows how much is done until it is stopped."""

    def show(self, done: int, total: int) -> None: ...

    def stop(self) -> None: ...


class _TerminalBar:
    """A bar on standard error."""

    def __init__(self, what: str) -> None:
        self._bar = _rich_bar(what)
        self._task = self._bar.add_task("", total=None)
        self._bar.start()

    def show(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def stop(self) -> None:
        self._bar.stop()


class _NotebookLine:
    """A line below the running cell, which is empty at the end."""

    def __init__(self, what: str, display: Callable[..., Any]) -> None:
        self._what, self._start = what, time.monotonic()
        self._line = display(self._content(""), raw=True, display_id=True)

    def show(self, done: int, total: int) -> None:
        seconds = time.monotonic() - self._start
        text = f"{self._what}: {done} of {total}, {seconds:.0f} s"
        self._line.update(self._content(text), raw=True)

    def stop(self) -> None:
        self._line.update(self._content(""), raw=True)

    @staticmethod
    def _content(text: str) -> dict[str, str]:
        return {"text/plain": text}


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show progress inside a block, if somebody looks. Pieces then show none.

    Args:
        what: what is counted.
        total: how much of it there is.

    Yields:
        A function that counts one more.
    """
    drawn = _draw(what)
    if drawn is None:
        yield lambda: None
        return
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        drawn.show(done, total)

    token = _has_bar.set(True)
    drawn.show(done, total)
    try:
        yield advance
    finally:
        drawn.stop()
        _has_bar.reset(token)


def _draw(what: str) -> _Drawn | None:
    """Begin to show something; None if nobody would see it."""
    if sys.stderr.isatty():
        return _TerminalBar(what)
    if (display := _notebook_display()) is not None:
        return _NotebookLine(what, display)
    return None


def _notebook_display() -> Callable[..., Any] | None:
    """IPython's ``display``, if this code runs in a notebook."""
    shell = sys.modules.get("IPython.core.interactiveshell")
    running = shell.InteractiveShell._instance if shell is not None else None
    if getattr(running, "kernel", None) is None:
        return None
    from IPython.display import display  # type: ignore[import-not-found]

    return display


def _rich_bar(what: str) -> Progress:
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    room = max(console.width - _NUMBERS - _LEAST_BAR, 8)
    said = what if len(what) <= room else f"{what[: room - 1]}…"
    width = max(min(_MOST_BAR, console.width - len(said) - _NUMBERS), _LEAST_BAR)
    return progress.Progress(
        progress.TextColumn(said),
        progress.BarColumn(width),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        console=console,
        transient=True,
    )


class CompileProgress:
    """Counts pieces, and shows or logs it while some of them are compiled."""

    def __init__(self) -> None:
        self.num_pieces = 0
        self.num_finished = 0
        self._num_said = 0
        self._drawn: _Drawn | None = None

    def add_pieces(self, count: int) -> None:
        """Count pieces that will be compiled."""
        self.num_pieces += count

    def start(self) -> None:
        """Begin to show or log progress, if there is something to compile."""
        if self.num_finished == self.num_pieces or _has_bar.get() or self._drawn is not None:
            return
        self._drawn = _draw("pab: compiling distinct pieces")
        if self._drawn is not None:
            self._drawn.show(self.num_finished, self.num_pieces)
        elif self._num_said < self.num_pieces:
            self._num_said = self.num_pieces
            _log.info("%d distinct pieces to compile", self.num_pieces - self.num_finished)

    def finish_piece(self, seconds: float) -> None:
        """Count a piece that was compiled in so many seconds."""
        self.num_finished += 1
        drawn = self._drawn  # another thread may be stopping it
        if drawn is not None:
            drawn.show(self.num_finished, self.num_pieces)
        elif seconds >= _LONG:
            done = f"{self.num_finished} of {self.num_pieces}"
            _log.info("%s pieces compiled; the last one took %.1f s", done, seconds)

    def stop(self) -> None:
        """Stop to show it."""
        drawn, self._drawn = self._drawn, None
        if drawn is not None:
            drawn.stop()
