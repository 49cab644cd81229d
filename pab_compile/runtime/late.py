"""Late graphs: those that run first in the middle of a generation, so that nothing of them is kept.

Dynamo may compile a model again while a generation runs, as when a number turns out to vary. Python
code between two graphs may also choose others. What the plan reuses then was not cached.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_MAX_PLACES = 3
_LATE = (
    "{} ran first at step {}, so outputs that the plan reuses there were not cached, and were not "
    "reused until the plan computed them: Dynamo compiled the model again during the generation, "
    "or Python code took another way through it"
)


@dataclass
class LateGraphs:
    """The graphs of a generation that missed a planned reuse because they had not run before.

    Attributes:
        labels: identity of a graph -> its number in the forward, from 1, and where it begins in the
            code; None if the graph is the whole forward.
    """

    labels: dict[str, tuple[int, str] | None] = field(default_factory=dict)
    _late: dict[int, dict[str, None]] = field(default_factory=dict)

    def add(self, graph: str, step: int) -> None:
        """Note that a graph missed a reuse.

        Args:
            graph: its identity.
            step: the step at which it ran first.
        """
        self._late.setdefault(step, {})[graph] = None

    def notes(self) -> list[str]:
        """One note for all graphs that ran first at one step."""
        return [
            _LATE.format(_named([self.labels.get(graph) for graph in graphs]), step)
            for step, graphs in sorted(self._late.items())
        ]


def _named(labels: list[tuple[int, str] | None]) -> str:
    """Graphs as a text: ``graphs 2-4 and 7 of the forward (attention.py:12, ...)``."""
    known = sorted({label for label in labels if label is not None})
    if not known:
        return "this form of the model"
    ranges: list[list[int]] = []
    for number, _ in known:
        if ranges and number <= ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    numbers = ", ".join(f"{first}-{last}" if first < last else f"{first}" for first, last in ranges)
    places = list(dict.fromkeys(place for _, place in known if place))
    shown = ", ".join([*places[:_MAX_PLACES], *(["..."] if len(places) > _MAX_PLACES else [])])
    word = "graph" if len(known) == 1 else "graphs"
    return f"{word} {numbers} of the forward" + (f" ({shown})" if shown else "")
