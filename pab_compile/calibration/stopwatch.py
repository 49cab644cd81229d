"""The stopwatch: when a step starts, by the host's clock."""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Iterator

import torch

_waits: contextvars.ContextVar[bool] = contextvars.ContextVar("waits", default=False)


@contextlib.contextmanager
def waiting_for_the_device() -> Iterator[None]:
    """Inside the block, ``now`` first waits until the accelerator has finished its work."""
    token = _waits.set(True)
    try:
        yield
    finally:
        _waits.reset(token)


def now() -> float:
    """Seconds on the host's clock."""
    if _waits.get() and torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
