"""Progress of compilation: a bar on a terminal, silent elsewhere."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class CompileProgress:
    """Counts pieces; draws a bar on standard error while some of them are being compiled."""

    def __init__(self) -> None:
        self.num_pieces = 0
        self.num_finished = 0
        self._bar: Progress | None = None

    def add_pieces(self, count: int) -> None:
        """More pieces are to be compiled."""
        self.num_pieces += count

    def start(self) -> None:
        """Begin drawing, if there is anything to compile and somebody to see it."""
        if self.num_finished < self.num_pieces and self._bar is None and sys.stderr.isatty():
            bar = Progress(
                TextColumn("pab: compiling distinct pieces"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            bar.add_task("", total=self.num_pieces, completed=self.num_finished)
            bar.start()
            self._bar = bar

    def finish_piece(self) -> None:
        """One piece is compiled."""
        self.num_finished += 1
        bar = self._bar  # another thread may be stopping it
        if bar is not None:
            bar.update(bar.task_ids[0], completed=self.num_finished)

    def stop(self) -> None:
        """Stop drawing."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()
