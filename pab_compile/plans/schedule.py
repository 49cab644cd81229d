"""Schedules: what is known of the steps of a generation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

_LAST = math.nextafter(1.0, 0.0)


@dataclass(frozen=True)
class Schedule:
    """The steps of one generation.

    Attributes:
        num_steps: number of steps, or None if it is unknown.
        timesteps: timestep value of each step in order, or None if they are unknown.
    """

    num_steps: int | None = None
    timesteps: tuple[float, ...] | None = field(default=None, repr=False)

    @property
    def is_known(self) -> bool:
        """Whether the number of steps is known, so that all decisions can be made in advance."""
        return self.num_steps is not None

    def progress(self, step: int, timestep: float, first_timestep: float) -> float:
        """Fraction of the generation that is over at this step, in [0, 1).

        It is ``step / num_steps`` if the number of steps is known. Otherwise it follows from the
        timestep, which goes from its first value down to 0. A rising timestep goes up to 1 or 1000,
        or as far above 0 as it began below. Where it goes on behind this end, or in another
        direction, the fraction stays at the last or at the first one.
        """
        if self.num_steps:
            return step / self.num_steps
        if step == 0:
            return 0.0
        if timestep <= first_timestep and first_timestep > 0:
            done = 1 - timestep / first_timestep
        else:
            end = 1.0 if timestep <= 1 else 1000.0
            end = -first_timestep if first_timestep < 0 else end
            done = (timestep - first_timestep) / (end - first_timestep or 1.0)
        return min(max(done, 0.0), _LAST)


@dataclass(frozen=True)
class Moment:
    """What a plan gets to know of one step."""

    step: int
    timestep: float | None
    first_timestep: float
    schedule: Schedule

    @property
    def progress(self) -> float:
        """Fraction of the generation that is over at this step."""
        timestep = self.first_timestep if self.timestep is None else self.timestep
        return self.schedule.progress(self.step, timestep, self.first_timestep)
