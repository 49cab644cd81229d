"""Timing: seconds of a generation, after one that compiles."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a function, and the seconds that it took on the device too."""
    _wait()
    start = time.perf_counter()
    result = run()
    _wait()
    return result, time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
