"""Says what an example does: a bar on a terminal, elsewhere a line when each stage starts."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class NoTerminal:
    """A stream that says it is no terminal: two bars on one terminal would disturb each other."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def isatty(self) -> bool:
        return False


class Stages:
    """The stages of a run, of which each has steps.

    Args:
        console: where to write.
        num_stages: number of stages that will come.
    """

    def __init__(self, console: Console, num_stages: int) -> None:
        self.console, self.num_stages, self.num_started = console, num_stages, 0
        self.start = time.perf_counter()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30))
        counts = TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}")
        self.bar = Progress(
            *columns,
            counts,
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.all = self.bar.add_task("all stages", total=num_stages, unit="stages")

    def __enter__(self) -> Stages:
        self.bar.start()
        self.other_bars = redirect_stderr(NoTerminal(sys.stderr))
        self.other_bars.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.other_bars.__exit__(kind, error, trace)
        self.bar.stop()

    @contextmanager
    def stage(self, label: str, num_steps: int = 1) -> Iterator[Callable[[], None]]:
        """Runs one stage; yields what to call after each of its steps."""
        self.num_started += 1
        if not self.console.is_terminal:
            seconds = time.perf_counter() - self.start
            line = f"{seconds:6.1f} s  stage {self.num_started} of {self.num_stages}: {label}"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
        task = self.bar.add_task(label, total=num_steps, unit="steps")
        yield lambda: self.bar.advance(task)
        self.bar.remove_task(task)
        self.bar.advance(self.all)
