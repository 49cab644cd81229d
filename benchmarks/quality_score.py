"""What `benchmarks.quality` saw of a plan: a row, a point of the picture, and who is as good.

In brackets 95 % intervals over the videos: bootstrap for means, Wilson for what was read.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest, bootstrap
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

STOCK = "stock torch.compile"
SAME_DB = 100.0


@dataclass
class Score:
    """What was seen of a plan.

    Attributes:
        plan: its name.
        ours: whether this library makes it.
        speed: time of stock `torch.compile` / time of the plan, one per batch.
        psnr, ssim, motion: one per video.
        read: whether the prompt is read, one per video.
        cache_bytes: most bytes kept, where it is known.
    """

    plan: str
    ours: bool = False
    speed: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    motion: list[float] = field(default_factory=list)
    read: list[bool] = field(default_factory=list)
    cache_bytes: int | None = None

    def add(self, videos: torch.Tensor, reference: torch.Tensor) -> None:
        """Compare videos ``[n, 1, frames, height, width]`` between -1 and 1."""
        pairs = (((v + 1) / 2).squeeze(1).numpy() for v in (videos, reference))
        for ours, theirs in zip(*pairs, strict=True):
            same = float(np.square(ours - theirs).mean()) < 10 ** (-SAME_DB / 10)
            psnr = SAME_DB if same else peak_signal_noise_ratio(theirs, ours, data_range=1.0)
            self.psnr.append(float(psnr))
            frames = zip(theirs, ours, strict=True)
            ssim = [float(structural_similarity(a, b, data_range=1.0)) for a, b in frames]
            self.ssim.append(statistics.fmean(ssim))
            moved, moves = np.diff(ours, axis=0), np.diff(theirs, axis=0)
            self.motion.append(float(np.linalg.norm(moved - moves) / np.linalg.norm(moves)))


def interval(values: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean."""
    if len(set(values)) < 2:
        return values[0], values[0]
    found = bootstrap((values,), np.mean, method="percentile", rng=0, n_resamples=2000)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


EQUAL_HEADERS = (
    "method",
    "speed",
    "PSNR dB",
    "ours, at least as good",
    "speed",
    "PSNR dB",
    "ratio",
)
HEADERS = ("plan", "speed", "PSNR dB", "SSIM", "motion error", "read %", "cache MiB")


def cells(score: Score) -> tuple[str, ...]:
    """A row of the table."""
    found = binomtest(sum(score.read), len(score.read)).proportion_ci(method="wilson")
    columns = [score.plan, f"{statistics.median(score.speed):.2f}x"]
    for values, digits_ in ((score.psnr, 1), (score.ssim, 3), (score.motion, 3)):
        low, high = interval(values)
        mean = statistics.fmean(values)
        columns.append(f"{mean:.{digits_}f} [{low:.{digits_}f}, {high:.{digits_}f}]")
    share = statistics.fmean(score.read)
    columns.append(f"{100 * share:.0f} [{100 * found.low:.0f}, {100 * found.high:.0f}]")
    cache = score.cache_bytes
    columns.append("-" if cache is None else f"{cache / 2**20:.2f}")
    return tuple(columns)


def as_good(scores: Sequence[Score]) -> list[tuple[str, ...]]:
    """Rows: each method that is not ours, and the fastest plan of ours with at least its PSNR.

    The ratio is that of the speeds, above 1 where ours is faster, as a median over the batches.
    """
    rows = []
    for other in scores:
        psnr = statistics.fmean(other.psnr)
        if other.ours or psnr >= SAME_DB:
            continue
        row = (other.plan, f"{statistics.median(other.speed):.2f}x", f"{psnr:.1f}")
        good = [s for s in scores if s.ours and statistics.fmean(s.psnr) >= psnr]
        if not good:
            rows.append((*row, "none", "-", "-", "-"))
            continue
        best = max(good, key=lambda score: statistics.median(score.speed))
        ratio = statistics.median(a / b for a, b in zip(best.speed, other.speed, strict=True))
        speed = f"{statistics.median(best.speed):.2f}x"
        rows.append((*row, best.plan, speed, f"{statistics.fmean(best.psnr):.1f}", f"{ratio:.2f}"))
    return rows


def markdown(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(headers)} |", "|---|" + "---:|" * (len(headers) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def plot(scores: list[Score], path: Path) -> None:
    """Quality against speed, one point per plan that changes anything."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    points = {s.plan: (statistics.median(s.speed), statistics.fmean(s.psnr)) for s in scores}
    for is_second_order in (False, True):
        fewer = [
            point
            for name, point in points.items()
            if name.startswith("no reuse") and ("Adams" in name) == is_second_order
        ]
        axes.plot(*zip(*fewer, strict=True), ":", color="gray", zorder=0)
    shown = [score for score in scores if points[score.plan][1] < SAME_DB]
    for number, score in enumerate(shown, start=1):
        speed, psnr = points[score.plan]
        low, high = interval(score.psnr)
        label = f"{number:2d}  {score.plan}"
        axes.errorbar(speed, psnr, [[psnr - low], [high - psnr]], fmt="o", capsize=3, label=label)
        aside = (5, 4) if number % 2 else (-15, 4)
        axes.annotate(str(number), (speed, psnr), aside, textcoords="offset points", fontsize=9)
    axes.set_xlabel("speed-up over stock torch.compile, measured")
    axes.set_ylabel("PSNR against no reuse, dB")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
