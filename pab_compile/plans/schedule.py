"""Schedules: what is known of the steps of a generation."""

from __future__ import annotations

from dataclasses import dataclass, field


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
        timestep, which goes from its first value down to 0. A rising timestep goes up to 1 or 1000.
        """
        if self.num_steps:
            return step / self.num_steps
        if step == 0:
            return 0.0
        if timestep <= first_timestep and first_timestep > 0:
            return 1 - timestep / first_timestep
        end = 1.0 if timestep <= 1 else 1000.0
        return min((timestep - first_timestep) / (end - first_timestep), 1.0)


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
