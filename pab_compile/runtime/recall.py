"""Recall: the timesteps of earlier generations, for timesteps that are read by value.

Some pipelines compute the timestep (``t / 1000``, a cast). Then the scheduler's table is hidden,
and the number of steps is unknown. A generation that starts like an earlier one is expected to
continue like it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Timesteps = tuple[float, ...]

_MAX_KNOWN = 8


class KnownSchedules:
    """Timesteps of the earlier generations of a model, the newest last."""

    def __init__(self) -> None:
        self._known: list[Timesteps] = []

    def learn(self, seen: Sequence[float]) -> None:
        """Remember the timesteps of a generation.

        A single call is not remembered, and neither is a part of known timesteps. If the new
        timesteps continue known ones, those were of an interrupted generation, and are dropped.
        """
        timesteps = tuple(seen)
        if len(timesteps) < 2 or any(_is_part(timesteps, known) for known in self._known):
            return
        kept = [known for known in self._known if known != timesteps[: len(known)]]
        self._known = [*kept, timesteps][-_MAX_KNOWN:]

    def starting_with(self, timestep: float) -> list[Timesteps]:
        """The known timesteps that start with this one."""
        return [known for known in self._known if math.isclose(known[0], timestep)]

    def go_on_after(self, timestep: float | None) -> bool:
        """Whether some known timesteps have more than one step after this one."""
        return any(timestep in known[:-2] for known in self._known)


def going_on(schedules: Sequence[Timesteps], step: int, timestep: float) -> list[Timesteps]:
    """The schedules that have this timestep at a step."""
    return [s for s in schedules if step < len(s) and math.isclose(s[step], timestep)]


def _is_part(timesteps: Timesteps, known: Timesteps) -> bool:
    starts = range(len(known) - len(timesteps) + 1)
    return any(known[start : start + len(timesteps)] == timesteps for start in starts)
