"""Benchmark `compile`: compile time does not grow with depth, and caches on disk are used."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.progress import Progress

from .fresh import FirstCall, first_call
from .results import Result, Target
from .timing import median

COLD, WARM, STOCK_COLD, STOCK_WARM = "pab cold", "pab warm", "stock cold", "stock warm"


def run(result: Result, quick: bool, progress: Progress) -> None:
    """Counts distinct pieces at several depths and times first calls in fresh processes."""
    depths = (2, 3, 4) if quick else (4, 8, 28)
    rounds, deepest = (1 if quick else 2), depths[-1]
    result.settings = {
        "layers": list(depths),
        "width": 64,
        "frames": "4 of 8x8",
        "rounds": rounds,
    }
    _count_pieces(result, depths, progress)
    calls: dict[str, list[FirstCall]] = {}
    task = progress.add_task(f"first calls at {deepest} layers", total=rounds * 4)
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as ours, tempfile.TemporaryDirectory() as theirs:
            for name, backend, cache in (
                (COLD, "pab", ours),
                (STOCK_COLD, "inductor", theirs),
                (WARM, "pab", ours),
                (STOCK_WARM, "inductor", theirs),
            ):
                calls.setdefault(name, []).append(first_call(deepest, backend, Path(cache)))
                progress.advance(task)
    progress.remove_task(task)
    compared: tuple[tuple[str, str, Target | None], ...] = (
        (COLD, STOCK_COLD, Target("<=", 0.6)),
        (WARM, COLD, Target("<=", 0.25)),
        (WARM, STOCK_WARM, None),
        (STOCK_WARM, STOCK_COLD, None),
    )
    for above, below, target in compared:
        seen = [a.seconds / b.seconds for a, b in zip(calls[above], calls[below], strict=True)]
        name = f"first call at {deepest} layers: {above} / {below}"
        result.add(name, median(seen), target=target, samples=seen)
        pairs = zip(calls[above], calls[below], strict=True)
        used = [a.processor_seconds / b.processor_seconds for a, b in pairs]
        result.add(f"processor time of the same: {above} / {below}", median(used), samples=used)
    for name in (COLD, WARM):
        for part, field in (
            ("the inner compiler", "inner_seconds"),
            ("the capture", "capture_seconds"),
            ("the passes", "pass_seconds"),
            ("Dynamo", "dynamo_seconds"),
        ):
            shares = [getattr(call, field) / call.seconds for call in calls[name]]
            result.add(f"share of {part}, {name}", median(shares), samples=shares)
    result.notes.append(
        "First calls: from torch.compile(...) to the end of the first call; every one in a process "
        "of its own, cold ones with an empty TORCHINDUCTOR_CACHE_DIR. The shares leave out "
        "the run itself, and what Inductor does once per process."
    )


def _count_pieces(result: Result, depths: tuple[int, ...], progress: Progress) -> None:
    """Adds the number of distinct pieces at each depth; the inner compiler is not needed for it."""
    counts = []
    task = progress.add_task("distinct pieces", total=len(depths))
    for depth in depths:
        with tempfile.TemporaryDirectory() as cache:
            counts.append(first_call(depth, "pab", Path(cache), inner="eager").num_pieces)
        progress.advance(task)
    progress.remove_task(task)
    for depth, count in zip(depths, counts, strict=True):
        target = Target("==", counts[0]) if depth != depths[0] else None
        result.add(f"distinct pieces at {depth} layers", count, "pieces", target)
