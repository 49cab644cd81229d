"""Progress of compilation: a bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

_has_bar: ContextVar[bool] = ContextVar("_has_bar", default=False)


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Draw a bar inside a block, if standard error is a terminal. Pieces then draw none.

    Args:
        what: what is counted.
        total: how much of it there is.

    Yields:
        A function that counts one more.
    """
    if not sys.stderr.isatty():
        yield lambda: None
        return
    shown = _bar(what)
    task, token = shown.add_task("", total=total), _has_bar.set(True)
    try:
        with shown:
            yield lambda: shown.advance(task)
    finally:
        _has_bar.reset(token)


def _bar(what: str) -> Progress:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn(what),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )


class CompileProgress:
    """Counts pieces, and draws a bar on standard error while some of them are compiled."""

    def __init__(self) -> None:
        self.num_pieces = 0
        self.num_finished = 0
        self._bar: Progress | None = None

    def add_pieces(self, count: int) -> None:
        """Count pieces that will be compiled."""
        self.num_pieces += count

    def start(self) -> None:
        """Begin to draw, if there is something to compile and standard error is a terminal."""
        is_waiting = self.num_finished < self.num_pieces and not _has_bar.get()
        if is_waiting and self._bar is None and sys.stderr.isatty():
            drawn = _bar("pab: compiling distinct pieces")
            drawn.add_task("", total=self.num_pieces, completed=self.num_finished)
            drawn.start()
            self._bar = drawn

    def finish_piece(self) -> None:
        """Count a piece that was compiled."""
        self.num_finished += 1
        drawn = self._bar  # another thread may be stopping it
        if drawn is not None:
            drawn.update(drawn.task_ids[0], completed=self.num_finished)

    def stop(self) -> None:
        """Stop to draw."""
        drawn, self._bar = self._bar, None
        if drawn is not None:
            drawn.stop()
