"""Statistics of a generation: what was computed, what was reused, and the cost."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pab_compile.passes.sites.site import KINDS

from .kept import Size
from .lane import Lane


@dataclass
class StepRecord:
    """One call of the model: how many sites of each kind computed and reused.

    Attributes:
        step: the step.
        computed: kind -> number of sites that computed.
        reused: kind -> number of sites that reused.
        started: when the call started, by the host's clock.
        seconds: seconds that the host spent in the graphs.
    """

    step: int
    computed: Counter[str] = field(default_factory=Counter)
    reused: Counter[str] = field(default_factory=Counter)
    started: float = 0.0
    seconds: float = 0.0

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds with a site that computed or reused, in the order of ``KINDS``."""
        return tuple(kind for kind in KINDS if self.computed[kind] or self.reused[kind])

    def pattern(self, kinds: Iterable[str]) -> str:
        """One letter per kind: ``C`` all computed, ``-`` all reused, ``~`` some of each."""
        letters = []
        for kind in kinds:
            computed, reused = self.computed[kind], self.reused[kind]
            letters.append("~" if computed and reused else "-" if reused else "C")
        return "".join(letters)


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

    def __str__(self) -> str:
        """A few readable lines."""
        lines = [f"{self.steps} steps, {self.calls} calls, {self.lanes} lane(s)"]
        for kind in self.kinds:
            lines.append(
                f"  {kind}: computed at {self.computed_steps[kind]} of {self.steps} steps "
                f"({self.computed[kind]} computed, {self.reused[kind]} reused)"
            )
        lines.append(f"  pattern per call ({'/'.join(self.kinds)}): {' '.join(self.patterns)}")
        host = self.peak_host_bytes / 2**20
        lines.append(
            f"  caches at most {self.peak_cache_bytes / 2**20:.2f} MiB"
            f"{f' and {host:.2f} MiB on the host' if host else ''}, per-prompt values "
            f"{self.held_bytes / 2**20:.2f} MiB; {self.num_pieces} distinct pieces, compiled in "
            f"{self.compile_seconds:.1f} s; {self.seconds_per_step:.4f} s per step"
        )
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


@dataclass
class GenerationRecord:
    """What is noted of a generation while it runs.

    Attributes:
        notes: why something was computed although the plan would reuse it.
        calls: one record per call of the model.
        peak_cache_bytes: most bytes in cache entries at once, on the device.
        peak_host_bytes: likewise in the memory of the host.
        held_bytes: most bytes of per-prompt values that are computed once.
        compilers: inner compiler -> number of its pieces and seconds that it took.
        why_nothing: why the plan reuses nothing, to be noted if that is so.
    """

    notes: list[str] = field(default_factory=list)
    calls: list[StepRecord] = field(default_factory=list)
    peak_cache_bytes: int = 0
    peak_host_bytes: int = 0
    held_bytes: int = 0
    compilers: dict[int, tuple[int, float]] = field(default_factory=dict)
    why_nothing: str = ""

    def note(self, text: str) -> None:
        """Note something once."""
        if text not in self.notes:
            self.notes.append(text)

    def add(self, call: StepRecord) -> None:
        """Add the record of a call; the graphs of one call add the same record."""
        if not self.calls or self.calls[-1] is not call:
            self.calls.append(call)

    def hold(self, size: Size) -> None:
        """Note how many bytes are in the cache entries of all lanes now."""
        self.peak_cache_bytes = max(self.peak_cache_bytes, size.device)
        self.peak_host_bytes = max(self.peak_host_bytes, size.host)

    def measure(self, lanes: Iterable[Lane]) -> None:
        """Note how many bytes of per-prompt values are held now."""
        self.held_bytes = max(self.held_bytes, sum(x.prelude_bytes() for x in lanes))

    def summary(self, lanes: int, num_steps: int | None) -> RunStats:
        """The statistics so far.

        Args:
            lanes: number of lanes.
            num_steps: number of steps, if the generation is complete.
        """
        kinds = tuple(dict.fromkeys(kind for call in self.calls for kind in call.kinds))
        computed = sum((call.computed for call in self.calls), Counter[str]())
        reused = sum((call.reused for call in self.calls), Counter[str]())
        computed_at = {
            kind: {call.step for call in self.calls if call.computed[kind]} for kind in kinds
        }
        notes = list(self.notes)
        is_over = num_steps is not None
        if self.why_nothing and not notes and is_over and not any(c.reused for c in self.calls):
            notes.append(self.why_nothing)
        gaps = step_seconds(self.calls).values()
        return RunStats(
            steps=len({call.step for call in self.calls}),
            calls=len(self.calls),
            lanes=lanes,
            kinds=kinds,
            computed={kind: computed[kind] for kind in kinds},
            reused={kind: reused[kind] for kind in kinds},
            computed_steps={kind: len(computed_at[kind]) for kind in kinds},
            patterns=tuple(call.pattern(kinds) for call in self.calls),
            peak_cache_bytes=self.peak_cache_bytes,
            peak_host_bytes=self.peak_host_bytes,
            held_bytes=self.held_bytes,
            num_pieces=sum(pieces for pieces, _ in self.compilers.values()),
            compile_seconds=sum(seconds for _, seconds in self.compilers.values()),
            seconds_per_step=statistics.median(gaps) if gaps else float("nan"),
            notes=tuple(notes),
        )


def step_seconds(calls: Sequence[StepRecord]) -> dict[int, float]:
    """Step -> seconds until the next step starts, in order. The last step is left out."""
    starts: dict[int, float] = {}
    for call in calls:
        starts.setdefault(call.step, call.started)
    ordered = sorted(starts, key=starts.__getitem__)
    return {step: starts[after] - starts[step] for step, after in itertools.pairwise(ordered)}
