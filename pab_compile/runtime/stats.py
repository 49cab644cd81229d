"""Statistics of a generation: what was computed, what was reused, and the cost."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pab_compile.passes.sites.site import KINDS
from pab_compile.report.exchanges import Exchanged, added_up
from pab_compile.report.run_stats import RunStats
from pab_compile.report.timeline import ABSENT, Call, Row, Timeline

from .kept import Size
from .lane import Lane
from .late import LateGraphs


@dataclass
class StepRecord:
    """One call of the model: how many sites of each kind computed and reused.

    Attributes:
        step: the step.
        computed: kind -> number of sites that computed.
        reused: kind -> number of sites that reused.
        started: when the call started, by the host's clock.
        seconds: seconds that the host spent in the graphs.
        spent: what they went to (``Call.spent``).
        lane: number of its lane.
        states: per graph, its sites and a letter for each of them (``report.timeline``).
        size: most bytes in the caches of all lanes during the call.
        exchanged: what this rank exchanged with others.
    """

    step: int
    computed: Counter[str] = field(default_factory=Counter)
    reused: Counter[str] = field(default_factory=Counter)
    started: float = 0.0
    seconds: float = 0.0
    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    lane: int = 0
    states: list[tuple[Sequence[Row], str]] = field(default_factory=list)
    size: Size = field(default_factory=Size)
    exchanged: list[Exchanged] = field(default_factory=list)

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
        late: the graphs that missed a reuse because they had not run before.
    """

    notes: list[str] = field(default_factory=list)
    calls: list[StepRecord] = field(default_factory=list)
    peak_cache_bytes: int = 0
    peak_host_bytes: int = 0
    held_bytes: int = 0
    compilers: dict[int, tuple[int, float]] = field(default_factory=dict)
    why_nothing: str = ""
    late: LateGraphs = field(default_factory=LateGraphs)

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
        notes = [*self.notes, *self.late.notes()]
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
            timeline=timeline_of(self.calls),
        )


def step_seconds(calls: Sequence[StepRecord]) -> dict[int, float]:
    """Step -> seconds until the next step starts, in order. The last step is left out."""
    starts: dict[int, float] = {}
    for call in calls:
        starts.setdefault(call.step, call.started)
    ordered = sorted(starts, key=starts.__getitem__)
    return {step: starts[after] - starts[step] for step, after in itertools.pairwise(ordered)}


def timeline_of(calls: Sequence[StepRecord]) -> Timeline:
    """What every site did at every call. Sites that a call did not run are blank there."""
    rows = tuple(dict.fromkeys(row for call in calls for sites, _ in call.states for row in sites))
    place = {row: number for number, row in enumerate(rows)}
    found = []
    for call in calls:
        letters = [ABSENT] * len(rows)
        for sites, states in call.states:
            for row, letter in zip(sites, states, strict=True):
                letters[place[row]] = letter
        states = "".join(letters)
        exchanged = added_up(call.exchanged)
        spent = (call.seconds, dict(call.spent), exchanged)
        found.append(Call(call.step, call.lane, states, *call.size, *spent))
    return Timeline(rows, tuple(found), step_seconds(calls))
