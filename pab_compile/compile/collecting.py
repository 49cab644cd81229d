"""Collecting: Python's garbage collector pauses while a program is compiled.

Graphs are many small objects, nearly all of which stay. The collector would walk through them, and
through all that Dynamo left, again and again: a third of the time of the passes.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the collector, unless it is paused already. One thread compiles at a time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
