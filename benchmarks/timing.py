"""Timing: alternating runs, and ratios of neighbours.

On a shared machine the speed drifts by tens of per cent within minutes, so what is compared runs in
turns (A B A B ...), and a ratio is the median over the turns of the ratio within a turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

from rich.progress import Progress

Samples = dict[str, list[float]]


def alternate(
    runs: Mapping[str, Callable[[], object]], rounds: int, progress: Progress, label: str
) -> Samples:
    """Times every run once per round.

    Args:
        runs: name -> what to time; each must end in a state where the work is done.
        rounds: how many turns.
        progress: where the turns are shown.
        label: what is being timed.

    Returns:
        Name -> seconds of each round.
    """
    samples: Samples = {name: [] for name in runs}
    task = progress.add_task(label, total=rounds * len(runs))
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            samples[name].append(time.perf_counter() - start)
            progress.advance(task)
    progress.remove_task(task)
    return samples


def ratios(samples: Mapping[str, list[float]], above: str, below: str) -> list[float]:
    """Returns time of `above` / time of `below` for every round."""
    return [a / b for a, b in zip(samples[above], samples[below], strict=True)]


def median(values: list[float]) -> float:
    """Returns the median."""
    return statistics.median(values)
