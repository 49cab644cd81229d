"""Progress of compilation: a bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


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
        if self.num_finished < self.num_pieces and self._bar is None and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            bar = progress.Progress(
                progress.TextColumn("pab: compiling distinct pieces"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            bar.add_task("", total=self.num_pieces, completed=self.num_finished)
            bar.start()
            self._bar = bar

    def finish_piece(self) -> None:
        """Count a piece that was compiled."""
        self.num_finished += 1
        bar = self._bar  # another thread may be stopping it
        if bar is not None:
            bar.update(bar.task_ids[0], completed=self.num_finished)

    def stop(self) -> None:
        """Stop to draw."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()
