"""A page that compares plans: seconds, quality, bytes, and the results side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

from .draw import format_bytes
from .films import films
from .html import document, table, versions


@dataclass(frozen=True)
class Compared:
    """One plan, relative to no reuse.

    Attributes:
        plan: its name.
        seconds: median seconds of a generation, without the first one.
        speed: seconds without reuse / seconds.
        psnr: mean over the prompts in dB; None if results are no tensors.
        psnr_half_width: of its 95 % interval; None for one prompt.
        ssim: mean over the prompts; None if results have no rows and columns.
        reused: the share of all runs of sites that reused.
        cache_bytes: most bytes in caches.
        options: the options of the backend, as texts.
        measures: further measures by name, means over the prompts.
    """

    plan: str
    seconds: float
    speed: float
    psnr: float | None
    psnr_half_width: float | None
    ssim: float | None
    reused: float
    cache_bytes: int
    options: Mapping[str, str] = field(default_factory=dict)
    measures: Mapping[str, float] = field(default_factory=dict)

    def cells(self) -> tuple[str, ...]:
        """The columns of ``_BEFORE``, the measures, and ``_AFTER``."""
        width = "" if self.psnr_half_width is None else f" ± {self.psnr_half_width:.1f}"
        return (
            self.plan,
            f"{self.seconds:.3g}",
            f"{self.speed:.2f}",
            "-" if self.psnr is None else f"{self.psnr:.1f}{width}",
            "-" if self.ssim is None else f"{self.ssim:.4f}",
            *(f"{value:.4g}" for value in self.measures.values()),
            f"{self.reused:.0%}",
            format_bytes(self.cache_bytes),
        )


_QUALITY = ("PSNR, dB", "SSIM")
_BEFORE, _AFTER = ("plan", "seconds", "speed", *_QUALITY), ("reused", "caches")
MEASURED = (*_BEFORE, *_AFTER, "PSNR", "LPIPS")
"""Names that a further measure cannot have."""


def columns(
    without: float, plans: Iterable[Compared]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows, without the quality that no plan has."""
    plans = list(plans)
    names = tuple(dict.fromkeys(name for plan in plans for name in plan.measures))
    all_ = (*_BEFORE, *names, *_AFTER)
    rows = [_without_reuse(without, len(names)), *(plan.cells() for plan in plans)]
    kept = [
        index
        for index, heading in enumerate(all_)
        if heading not in _QUALITY or any(row[index] != "-" for row in rows)
    ]
    headings, *rows = [tuple(row[index] for index in kept) for row in (all_, *rows)]
    return headings, rows


def _without_reuse(seconds: float, num_measures: int) -> tuple[str, ...]:
    """The first row of a comparison."""
    quality = ("-",) * (len(_QUALITY) + num_measures)
    return ("without reuse", f"{seconds:.3g}", "1.00", *quality, "0%", "-")


def compare_page(
    title: str,
    said: str,
    without: float,
    plans: Iterable[Compared],
    videos: Mapping[str, Any],
    data: Mapping[str, object],
    notes: Iterable[str] = (),
) -> str:
    """The page.

    Args:
        title: its title.
        said: what was run.
        without: seconds without reuse.
        plans: what was compared.
        videos: name -> a file, or frames (``films``).
        data: all numbers, for programs.
        notes: what could not be measured.
    """
    plans = list(plans)
    headings, rows = columns(without, plans)
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">{escape(said)}</p>',
        *_bars(plans),
        "<p></p>",
        table(headings, rows, range(1, len(headings))),
        *(f'<p class="note">{escape(note)}</p>' for note in notes),
        *films(videos),
        "<h2>To reproduce it</h2>",
        table(("plan", "options"), [(plan.plan, _said(plan.options)) for plan in plans]),
        "<p></p>",
        table(("package", "version"), versions().items()),
    ]
    return document(title, sections, data)


def _bars(plans: Iterable[Compared]) -> Iterable[str]:
    """Speed as bars, with the quality beside it."""
    rows = [("without reuse", 1.0, ""), *((p.plan, p.speed, _quality(p)) for p in plans)]
    top = max(speed for _, speed, _ in rows) or 1.0
    yield "<h2>Speed</h2>"
    for name, speed, quality in rows:
        yield (
            f'<div class="speed"><span class="name">{escape(name)}</span>'
            f'<span class="bar"><i style="width:{100 * speed / top:.1f}%"></i></span>'
            f"<span><b>{speed:.2f}x</b> {escape(quality)}</span></div>"
        )


def _said(options: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items() if name != "plan")


def _quality(plan: Compared) -> str:
    parts = [] if plan.psnr is None else [f"{plan.psnr:.1f} dB"]
    parts += [] if plan.ssim is None else [f"SSIM {plan.ssim:.3f}"]
    return ", ".join([*parts, *(f"{name} {value:.3g}" for name, value in plan.measures.items())])
