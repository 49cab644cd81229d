"""What is known of a generation's steps."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Schedule:
    """The steps of one generation.

    Attributes:
        num_steps: how many steps there are, or None when nobody has said.
        timesteps: timestep value of each step in order, where known.
    """

    num_steps: int | None = None
    timesteps: tuple[float, ...] | None = field(default=None, repr=False)

    @property
    def is_known(self) -> bool:
        """Whether the whole plan can be made in advance."""
        return self.num_steps is not None

    def progress(self, step: int, timestep: float, first_timestep: float) -> float:
        """Fraction of the generation that is behind at this step, in [0, 1).

        ``step / num_steps`` where the number of steps is known; otherwise how far the timestep has
        come from its first value down to 0 (or up to 1, or 1000, for clocks that rise).
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
    """One step of a generation, as plans see it."""

    step: int
    timestep: float | None
    first_timestep: float
    schedule: Schedule

    @property
    def progress(self) -> float:
        """Fraction of the generation that is behind at this step."""
        timestep = self.first_timestep if self.timestep is None else self.timestep
        return self.schedule.progress(self.step, timestep, self.first_timestep)
