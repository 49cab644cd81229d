"""Recall: the timesteps of earlier generations, for clocks that are read by value.

A pipeline that computes its timestep (``t / 1000``, a cast) hides the scheduler's table, and with
that how many steps there are. A generation that starts like an earlier one is taken to go on like
it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Timesteps = tuple[float, ...]

_MAX_KNOWN = 8


class KnownSchedules:
    """Timesteps of the generations that a model went through, newest last."""

    def __init__(self) -> None:
        self._known: list[Timesteps] = []

    def learn(self, seen: Sequence[float]) -> None:
        """Remember the timesteps of a generation, unless it was a part of one known, or one call.

        One that was broken off is forgotten once it is seen to the end.
        """
        timesteps = tuple(seen)
        if len(timesteps) < 2 or any(_is_part(timesteps, known) for known in self._known):
            return
        kept = [known for known in self._known if known != timesteps[: len(known)]]
        self._known = [*kept, timesteps][-_MAX_KNOWN:]

    def starting_with(self, timestep: float) -> list[Timesteps]:
        """The schedules whose first step is at this timestep."""
        return [known for known in self._known if math.isclose(known[0], timestep)]

    def go_on_after(self, timestep: float | None) -> bool:
        """Whether more than one step of some schedule is left after this timestep."""
        return any(timestep in known[:-2] for known in self._known)


def going_on(schedules: Sequence[Timesteps], step: int, timestep: float) -> list[Timesteps]:
    """Those schedules that are at this timestep at a step."""
    return [s for s in schedules if step < len(s) and math.isclose(s[step], timestep)]


def _is_part(timesteps: Timesteps, known: Timesteps) -> bool:
    starts = range(len(known) - len(timesteps) + 1)
    return any(known[start : start + len(timesteps)] == timesteps for start in starts)
