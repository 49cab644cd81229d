"""Plots of a page: bars per step, one above the other, and curves. They are SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import TypeGuard

from .draw import format_bytes
from .timeline import COMPILE, GLUE, OUTSIDE, REUSE, SITES, Timeline

_PARTS = {
    SITES: "#1f4e79",
    REUSE: "#8fb8de",
    GLUE: "#b8860b",
    COMPILE: "#b5463c",
    OUTSIDE: "#b8c4cf",
}
_CURVES = ("#1f4e79", "#c2551d", "#3a7d44", "#8a6fb0", "#b8860b", "#b5463c", "#4a5a6a")
_CUT_OFF = 10  # times the usual step


def timeline_plots(timeline: Timeline) -> Iterator[str]:
    """Memory and seconds over the steps."""
    memory, steps = timeline.memory(), timeline.steps
    if any(device for device, _ in memory):
        yield from _memory("Memory of the caches", steps, [device for device, _ in memory])
    if any(host for _, host in memory):
        yield from _memory("Caches on the host", steps, [host for _, host in memory])
    if len(timeline.step_seconds) > 1:
        yield from _seconds(timeline)


def sent_plot(timeline: Timeline) -> Iterator[str]:
    """Bytes that this rank sent to others over the steps."""
    yield from _memory("Sent to other ranks", timeline.steps, timeline.sent())


def curves(values: Mapping[str, Sequence[float | None]]) -> Iterator[str]:
    """How much the outputs of each kind change from step to step, on a logarithmic scale."""
    known = [v for curve in values.values() for v in curve if _is_shown(v)]
    if not known:
        return
    low, high = math.log10(min(known)), math.log10(max(known))
    scale = (high - low) or 1.0
    number = max(map(len, values.values()))
    yield "<h2>Difference to the step before</h2>"
    yield (
        '<p class="quiet">Mean squared difference of the outputs without reuse, by kind, on a '
        f"logarithmic scale from {min(known):.2g} to {max(known):.2g}. "
        "Small differences can be reused.</p>"
    )
    colours = {kind: _CURVES[n % len(_CURVES)] for n, kind in enumerate(values)}
    yield _key(colours)
    lines = []
    for kind, curve in values.items():
        points = " ".join(
            f"{1000 * (step + 0.5) / number:.1f},{100 - 100 * (math.log10(v) - low) / scale:.1f}"
            for step, v in enumerate(curve)
            if _is_shown(v)
        )
        lines.append(
            f'<polyline points="{points}" fill="none" stroke="{colours[kind]}" stroke-width="2" '
            f'vector-effect="non-scaling-stroke"><title>{escape(kind)}</title></polyline>'
        )
    yield _svg("Difference to the step before", "".join(lines))
    yield _axis(0, number - 1)


def _is_shown(value: float | None) -> TypeGuard[float]:
    return value is not None and value > 0 and math.isfinite(value)


def _memory(title: str, steps: Sequence[int], values: Sequence[int]) -> Iterator[str]:
    bars = {title: ("#1f4e79", values)}
    said = f"at most {format_bytes(max(values))} at a step."
    yield from _bars(title, said, steps, bars, lambda value: format_bytes(round(value)))


def _seconds(timeline: Timeline) -> Iterator[str]:
    """Seconds of the steps, by what they went to if that is known."""
    seconds = timeline.step_seconds
    usual, longest = sorted(seconds.values())[len(seconds) // 2], max(seconds.values())
    limit = _CUT_OFF * usual
    parts = timeline.seconds_by_part()
    shown = {part: values for part, values in parts.items() if any(values)}
    note = " Longer bars are cut off." if longest > limit else ""
    said = f"at most {longest:.3g} s, usually {usual:.3g} s, by the host's clock.{note}"
    bars: dict[str, tuple[str, Sequence[float]]] = {}
    left = [limit] * len(seconds)
    for part, values in shown.items():
        cut = [min(value, rest) for value, rest in zip(values, left, strict=True)]
        left = [rest - value for rest, value in zip(left, cut, strict=True)]
        bars[part] = (_PARTS[part], cut)
    total = sum(seconds.values()) or 1.0
    shares = {f"{part} {sum(v) / total:.0%}": _PARTS[part] for part, v in shown.items()}
    key = _key(shares) if len(shown) > 1 else ""
    yield from _bars(
        "Where the time goes", said, list(seconds), bars, lambda value: f"{value:.3g} s", key
    )


def _bars(
    title: str,
    said: str,
    steps: Sequence[int],
    parts: Mapping[str, tuple[str, Sequence[float]]],
    text: Callable[[float], str],
    key: str = "",
) -> Iterator[str]:
    """Bars over the steps; the parts of a step stand one above the other."""
    sums = [sum(values[n] for _, values in parts.values()) for n in range(len(steps))]
    top, width = max(sums) or 1.0, 1000 / max(len(steps), 1)
    gap = 1.5 if width > 6 else 0
    shapes, at = [], [100.0] * len(steps)
    for part, (colour, values) in parts.items():
        for number, (step, value) in enumerate(zip(steps, values, strict=True)):
            if not value:
                continue
            height = 100 * value / top
            at[number] -= height
            shapes.append(
                f'<rect x="{number * width:.2f}" y="{at[number]:.2f}" fill="{colour}" '
                f'width="{max(width - gap, 0.5):.2f}" height="{height:.2f}">'
                f"<title>step {step}, {escape(part)}: {escape(text(value))}</title></rect>"
            )
    yield f"<h2>{escape(title)}</h2>"
    yield f'<p class="quiet">{escape(said)}</p>{key}'
    yield _svg(title, "".join(shapes))
    yield _axis(steps[0], steps[-1])


def _svg(title: str, content: str) -> str:
    return (
        '<svg class="plot" viewBox="0 -4 1000 108" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title, quote=True)}">{content}</svg>'
    )


def _axis(first: int, last: int) -> str:
    return f'<div class="axis"><span>step {first}</span><span>step {last}</span></div>'


def _key(colours: Mapping[str, str]) -> str:
    shown = (
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>'
        for name, colour in colours.items()
    )
    return f'<div class="key">{"".join(shown)}</div>'
