"""Synchronisations: how often a loop waits for the device, and what keeps the device busy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile, record_function

WAITS = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "aten::_local_scalar_dense",
)
STEP = "benchmark step"


@dataclass(frozen=True)
class LoopProfile:
    """What the profiler saw inside a loop.

    Attributes:
        first_step: name -> waits in the first step.
        later_steps: name -> waits in all steps after it.
        device_busy_seconds: sum of the times of all kernels; 0 on a CPU.
    """

    first_step: dict[str, int]
    later_steps: dict[str, int]
    device_busy_seconds: float


class StepMarker:
    """Marks the steps of a loop in a profile; to be called at the start of every step."""

    def __init__(self) -> None:
        self._open: record_function | None = None

    def __call__(self, _: object = None) -> None:
        self.close()
        self._open = record_function(STEP)
        self._open.__enter__()

    def close(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None


def profile_loop(loop: Callable[[StepMarker], object]) -> LoopProfile:
    """Runs a loop under the profiler.

    Args:
        loop: calls the marker at the start of every step.
    """
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    marker = StepMarker()
    with profile(activities=activities, acc_events=True) as profiler:
        loop(marker)
        marker.close()
    events = list(profiler.events() or [])
    on_host = [e for e in events if e.device_type == torch.autograd.DeviceType.CPU]
    steps = sorted((e.time_range.start, e.time_range.end) for e in on_host if e.name == STEP)
    first, later = Counter[str](), Counter[str]()
    for event in on_host:
        at = event.time_range.start
        if event.name in WAITS and steps[0][0] <= at <= steps[-1][1]:
            (first if at <= steps[0][1] else later)[event.name] += 1
    busy = sum(
        e.time_range.elapsed_us()
        for e in events
        if e.device_type != torch.autograd.DeviceType.CPU and e.name != STEP
    )
    return LoopProfile(dict(first), dict(later), busy / 1e6)
