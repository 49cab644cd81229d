"""Statistics of a generation: what was computed, what was reused, what it cost."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pab_compile.passes.sites.site import KINDS


@dataclass
class StepRecord:
    """One call: the kinds that computed and reused, by number of sites."""

    step: int
    computed: Counter[str] = field(default_factory=Counter)
    reused: Counter[str] = field(default_factory=Counter)
    started: float = 0.0
    seconds: float = 0.0

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds that computed or reused, in the order of ``KINDS``."""
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
        lanes: number of lanes (calls per step that keep caches of their own).
        kinds: kinds of attention, and of other sites that the plan may reuse, in order of the
            letters of ``patterns``.
        computed: kind -> computations (sites times steps times lanes).
        reused: kind -> reuses, likewise.
        computed_steps: kind -> steps at which at least one of its sites computed.
        patterns: per call, one letter per kind: ``C`` computed, ``-`` reused, ``~`` some of each.
        peak_cache_bytes: most bytes in slots at once.
        held_bytes: bytes of per-prompt values that are computed once.
        num_pieces: distinct pieces that were compiled.
        compile_seconds: seconds spent in the inner compiler.
        seconds_per_step: median seconds between the starts of successive steps, as the host sees
            them; NaN for a single step.
        notes: why something was computed though the plan would reuse it.
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
        lines.append(
            f"  caches at most {self.peak_cache_bytes / 2**20:.2f} MiB, per-prompt values "
            f"{self.held_bytes / 2**20:.2f} MiB; {self.num_pieces} distinct pieces, compiled in "
            f"{self.compile_seconds:.1f} s; {self.seconds_per_step:.4f} s per step"
        )
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def summarise(
    records: Sequence[StepRecord],
    kinds: tuple[str, ...],
    *,
    lanes: int,
    peak_cache_bytes: int,
    held_bytes: int,
    num_pieces: int,
    compile_seconds: float,
    notes: Iterable[str],
) -> RunStats:
    """Statistics from the records of all calls of a generation."""
    computed, reused = Counter[str](), Counter[str]()
    computed_at: dict[str, set[int]] = {kind: set() for kind in kinds}
    for record in records:
        computed.update(record.computed)
        reused.update(record.reused)
        for kind in kinds:
            if record.computed[kind]:
                computed_at[kind].add(record.step)
    gaps = step_seconds(records).values()
    return RunStats(
        steps=len({record.step for record in records}),
        calls=len(records),
        lanes=lanes,
        kinds=kinds,
        computed={kind: computed[kind] for kind in kinds},
        reused={kind: reused[kind] for kind in kinds},
        computed_steps={kind: len(computed_at[kind]) for kind in kinds},
        patterns=tuple(record.pattern(kinds) for record in records),
        peak_cache_bytes=peak_cache_bytes,
        held_bytes=held_bytes,
        num_pieces=num_pieces,
        compile_seconds=compile_seconds,
        seconds_per_step=statistics.median(gaps) if gaps else float("nan"),
        notes=tuple(dict.fromkeys(notes)),
    )


def step_seconds(records: Sequence[StepRecord]) -> dict[int, float]:
    """Step -> seconds until the next one starts, in order; the last step has no next one."""
    starts: dict[int, float] = {}
    for record in records:
        starts.setdefault(record.step, record.started)
    ordered = sorted(starts, key=starts.__getitem__)
    return {step: starts[after] - starts[step] for step, after in itertools.pairwise(ordered)}
