"""Timeline: what every site did at every call of one generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from .exchanges import Exchanged

COMPUTED, REUSED, PREDICTED, MIXED, ABSENT = "C", "-", "p", "~", " "
SITES, REUSE, GLUE, COMPILE = "sites that compute", "sites that reuse", "glue", "compiling"
OUTSIDE = "outside the model"
MEANINGS = {
    COMPUTED: "computed",
    REUSED: "reused",
    PREDICTED: "predicted",
    MIXED: "computed in part",
}


class Row(NamedTuple):
    """A site of a timeline."""

    name: str
    kind: str


@dataclass(frozen=True)
class Call:
    """One call of the model.

    Attributes:
        step: the step.
        lane: number of the lane, from 0.
        states: one letter per site: ``C`` computed, ``-`` repeated an output, ``p`` predicted from
            several or with weights, ``~`` computed one half of the batch and predicted the other
            one, a blank where it did not run.
        cache_bytes: most bytes in the caches of all lanes during the call, on the device.
        host_bytes: likewise in the memory of the host.
        seconds: seconds that the host spent in the graphs.
        spent: what they went to -> seconds. Glue is what belongs to no site.
        exchanged: what this rank exchanged with others.
    """

    step: int
    lane: int
    states: str
    cache_bytes: int
    host_bytes: int
    seconds: float
    spent: Mapping[str, float] = field(default_factory=dict)
    exchanged: tuple[Exchanged, ...] = ()

    @property
    def computes_all(self) -> bool:
        """Whether every site that ran computed."""
        return set(self.states) <= {COMPUTED, ABSENT}


@dataclass(frozen=True)
class Timeline:
    """All calls of a generation.

    Attributes:
        sites: all sites that ran, in the order of the model.
        calls: in the order in which they were made.
        step_seconds: step -> seconds until the next step began, by the host's clock.
    """

    sites: tuple[Row, ...]
    calls: tuple[Call, ...]
    step_seconds: dict[int, float]

    @property
    def steps(self) -> list[int]:
        """The steps, in order."""
        return sorted({call.step for call in self.calls})

    def share(self, letters: str) -> float:
        """The share of all runs of sites that have one of these letters."""
        counted = [letter for call in self.calls for letter in call.states if letter != ABSENT]
        return sum(counted.count(x) for x in letters) / len(counted) if counted else 0.0

    def strips(self) -> list[str]:
        """Per site, one letter per step. ``~`` where the calls of the step differ."""
        by_step: dict[int, list[str]] = {step: [] for step in self.steps}
        for call in self.calls:
            by_step[call.step].append(call.states)
        columns = [_merged(states, len(self.sites)) for states in by_step.values()]
        return ["".join(letters) for letters in zip(*columns, strict=True)]

    def memory(self) -> list[tuple[int, int]]:
        """Per step, the most bytes on the device and in the memory of the host."""
        found: dict[int, tuple[int, int]] = dict.fromkeys(self.steps, (0, 0))
        for call in self.calls:
            device, host = found[call.step]
            found[call.step] = max(device, call.cache_bytes), max(host, call.host_bytes)
        return list(found.values())

    def sent(self) -> list[int]:
        """Per step, the bytes that this rank sent to other ranks."""
        found = dict.fromkeys(self.steps, 0)
        for call in self.calls:
            found[call.step] += sum(row.sent_bytes for row in call.exchanged)
        return list(found.values())

    def seconds_by_part(self) -> dict[str, list[float]]:
        """What the time of every step but the last went to, in seconds, by the host's clock."""
        steps = list(self.step_seconds)
        found = {part: [0.0] * len(steps) for part in (SITES, REUSE, GLUE, COMPILE, OUTSIDE)}
        place = {step: number for number, step in enumerate(steps)}
        inside = [0.0] * len(steps)
        for call in self.calls:
            if (at := place.get(call.step)) is not None:
                inside[at] += sum(call.spent.values())
                for part, seconds in call.spent.items():
                    found[part][at] += seconds
        for at, step in enumerate(steps):
            found[OUTSIDE][at] = max(self.step_seconds[step] - inside[at], 0.0)
        return found


def _merged(states: Sequence[str], num_sites: int) -> str:
    """One letter per site for the calls of one step."""
    found = []
    for site in range(num_sites):
        letters = {state[site] for state in states} - {ABSENT}
        found.append(MIXED if len(letters) > 1 else next(iter(letters), ABSENT))
    return "".join(found)


def runs(strip: str) -> list[tuple[str, int]]:
    """A strip as letters with how often each follows itself."""
    return [(letter, len(list(group))) for letter, group in groupby(strip)]
