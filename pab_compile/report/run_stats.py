"""Statistics of a generation as users see them: numbers, a text, a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .draw import format_bytes
from .exchanges import Exchanges
from .explanation import Explanation
from .files import write_text
from .table import table_lines
from .text import width, wrapped
from .timeline import ABSENT, COMPUTED, MIXED, Timeline

_LEGEND = (
    "A letter per kind and call: C all of its sites computed, - all reused, ~ some of each. "
    "A lane is one of the calls of a step, such as those of guidance."
)


@dataclass(frozen=True)
class RunStats:
    """The last generation of a compiled model.

    Attributes:
        steps: number of steps.
        calls: number of calls of the model (steps times lanes).
        lanes: number of lanes (calls per step, each with its own cache).
        kinds: kinds of attention, and of other sites that the plan may reuse. The letters of
            ``patterns`` have this order.
        computed: kind -> computations (sites times steps times lanes).
        reused: kind -> reuses, likewise.
        computed_steps: kind -> steps at which at least one of its sites computed.
        patterns: per call, one letter per kind: ``C`` computed, ``-`` reused, ``~`` some of each.
        peak_cache_bytes: most bytes in the cache entries of all lanes at any moment, on the device.
        peak_host_bytes: likewise in the memory of the host, with ``cache_offload``.
        held_bytes: bytes of per-prompt values that are computed once.
        num_pieces: number of distinct pieces that were compiled.
        compile_seconds: seconds spent in the inner compiler.
        seconds_per_step: median seconds between the starts of successive steps, by the host's
            clock; NaN for a single step.
        notes: why something was computed although the plan would reuse it.
        timeline: what every site did at every call.
        explanation: what was found in the model; None if that is unknown.
        options: the options of the compilation, as texts.
    """

    steps: int
    calls: int
    lanes: int
    kinds: tuple[str, ...]
    computed: dict[str, int]
    reused: dict[str, int]
    computed_steps: dict[str, int]
    patterns: tuple[str, ...]
    peak_cache_bytes: int
    peak_host_bytes: int
    held_bytes: int
    num_pieces: int
    compile_seconds: float
    seconds_per_step: float
    notes: tuple[str, ...]
    timeline: Timeline = field(default=Timeline((), (), {}), compare=False, repr=False)
    explanation: Explanation | None = field(default=None, compare=False, repr=False)
    options: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def reused_share(self) -> float:
        """The share of all runs of sites that reused."""
        runs = sum(self.computed.values()) + sum(self.reused.values())
        return sum(self.reused.values()) / runs if runs else 0.0

    @property
    def headline(self) -> str:
        """What happened, in one line."""
        lanes = f", {self.lanes} per step" if self.lanes > 1 else ""
        return (
            f"{self.steps} steps, {self.calls} calls{lanes}: {self.reused_share:.0%} of the runs "
            "of sites were reused."
        )

    def to_json(self) -> dict[str, Any]:
        """All fields but the explanation, in types of JSON. NaN is None."""
        found = asdict(self) | {"options": dict(self.options)}
        del found["explanation"]
        seconds = self.seconds_per_step
        found["seconds_per_step"] = None if math.isnan(seconds) else seconds
        return found

    def to_html(
        self,
        path: str | Path | None = None,
        *,
        title: str = "",
        speed: float | None = None,
        quality: str = "",
        curves: Mapping[str, Sequence[float | None]] | None = None,
        videos: Mapping[str, Any] | None = None,
    ) -> str:
        """A page about the generation. It needs no other file and no network.

        Args:
            path: where to write it; None only returns it.
            title: its title. It should name the model.
            speed: seconds without reuse / seconds with the plan, if it was measured.
            quality: what was measured of the quality, such as ``"31.3 dB PSNR"``.
            curves: kind -> mean squared difference to the step before, per step
                (``Observation.curves``).
            videos: name -> the path of a video or picture, or frames: a tensor of shape
                ``[frames, height, width]`` or ``[frames, height, width, 3]``.

        Returns:
            The page.

        Raises:
            PabError: a video is none of these.
        """
        from .measured import Measured
        from .page import run_page

        page = run_page(self, title, Measured(speed, quality, curves or {}, videos or {}))
        if path is not None:
            write_text(path, page)
        return page

    def _repr_html_(self) -> str:
        """What notebooks show."""
        from .page import run_fragment

        return run_fragment(self)

    def __str__(self) -> str:
        """A table that fits the terminal."""
        lines = wrapped(self.headline)
        rows = [self._row(kind) for kind in self.kinds]
        total = ("all", "", str(sum(self.computed.values())), str(sum(self.reused.values())))
        rows += [(*total, f"{self.reused_share:.0%}")] if len(rows) > 1 else []
        headings = ("kind", "steps that compute", "computed", "reused", "share reused")
        lines += table_lines(headings, rows, num_left=1, width=width())
        lines += wrapped(f"pattern per call ({'/'.join(self.kinds)}): {' '.join(self.patterns)}")
        lines += wrapped(_LEGEND)
        host = self.peak_host_bytes
        lines += wrapped(
            f"caches at most {format_bytes(self.peak_cache_bytes)}"
            f"{f' and {format_bytes(host)} on the host' if host else ''}, per-prompt values "
            f"{format_bytes(self.held_bytes)}; {self.num_pieces} distinct pieces, compiled in "
            f"{self.compile_seconds:.1f} s; {_seconds(self.seconds_per_step)}"
        )
        lines += wrapped(Exchanges(self.timeline).line())
        for note in self.notes:
            lines += wrapped(f"note: {note}")
        return "\n".join(lines)

    def _row(self, kind: str) -> tuple[str, ...]:
        computed, reused = self.computed[kind], self.reused[kind]
        share = reused / (computed + reused) if computed + reused else 0.0
        steps = f"{self.computed_steps[kind]} of {self.steps}"
        return kind, steps, str(computed), str(reused), f"{share:.0%}"


def _seconds(per_step: float) -> str:
    return "one step" if math.isnan(per_step) else f"{per_step:.4g} s per step"


def saved_operations(stats: RunStats) -> float | None:
    """The share of all operations that reuse left out; None if they are unknown.

    Sums of several sites count as their parts. What only feeds a branch counts if its site says so.
    """
    found, timeline = stats.explanation, stats.timeline
    if found is None or not found.total_flops or not timeline.calls:
        return None
    flops = {site.name: site.flops for site in found.sites}
    per_row = [flops.get(row.name, 0) for row in timeline.sites]
    saved = sum(
        number / 2 if letter == MIXED else number
        for call in timeline.calls
        for number, letter in zip(per_row, call.states, strict=True)
        if letter not in (COMPUTED, ABSENT)
    )
    return saved / (found.total_flops * len(timeline.calls))
