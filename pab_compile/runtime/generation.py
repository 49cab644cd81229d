"""Generations: whose cached outputs a call may use.

A *generation* is one run of the sampler. Its calls belong to *lanes* (``lane``). Calls that do not
continue a generation start a new one, and compute. A generation whose calls may belong to two runs
of the sampler is not trusted, and computes at every step.
"""

from __future__ import annotations

from dataclasses import dataclass

from pab_compile.plans.decisions import Decisions
from pab_compile.plans.schedule import Schedule

from .clock import Reading, TimestepTable
from .lane import Call, Lane, Lanes
from .recall import Timesteps
from .stats import GenerationRecord, RunStats, StepRecord
from .stepping import enter_unknown


@dataclass(frozen=True, eq=False)
class Place:
    """Where one call of the model belongs, and what it did. The graphs of a forward share it."""

    generation: Generation
    lane: Lane
    record: StepRecord


class Generation:
    """One run of the sampler with one model.

    Attributes:
        step: the current step.
        timestep: the timestep that was read at the current step; None if the user stated the step.
        first_timestep: the timestep of the first step.
        table: the scheduler's table of timesteps, if the timestep is a view of one.
        origin: index of the first step in the table.
        seen: the timesteps that were read, in order.
        schedule: what is known of the steps.
        recalled: the schedules of earlier generations that this one may follow.
        trusted: whether all calls are of one generation. If not, everything computes.
        decisions: graph -> its decisions.
        lanes: the calls per step.
        record: what is noted for the statistics.
        closed: whether the generation is over.
    """

    def __init__(self, call: Call, trusted: bool = True) -> None:
        reading = call.reading
        self.step = call.index or 0
        self.timestep = reading.value
        self.first_timestep = 0.0 if reading.value is None else reading.value
        self.table: TimestepTable | None = reading.table
        self.origin = reading.index or 0
        self.seen: list[float] = [] if reading.value is None else [reading.value]
        self.schedule = call.schedule or _schedule_of(reading)
        self.recalled: list[Timesteps] = []
        self.trusted = trusted
        self.decisions: dict[str, Decisions] = {}
        self.lanes = Lanes()
        self.record = GenerationRecord()
        self.closed = False

    # Steps and schedule.

    @property
    def first_reusable_step(self) -> int:
        """Earliest step whose outputs may be reused.

        Without a schedule, the first call may be a single one, such as a warm-up. So it is not
        certain that its outputs belong to the calls after it.
        """
        return 0 if self.schedule.is_known else 1

    @property
    def timestep_now(self) -> float | None:
        """Timestep of the current step: from the schedule, else as it was read; None if unknown."""
        scheduled = self.schedule.timesteps or ()
        return scheduled[self.step] if self.step < len(scheduled) else self.timestep

    @property
    def is_last_step(self) -> bool:
        """Whether the current step is known to be the last."""
        return self.schedule.num_steps is not None and self.step >= self.schedule.num_steps - 1

    @property
    def is_nearly_done(self) -> bool:
        """Whether at most one step is left. A table may have one timestep too many."""
        return self.schedule.num_steps is not None and self.step >= self.schedule.num_steps - 2

    def recall(self, schedules: list[Timesteps]) -> None:
        """Set the schedules that this generation may follow. It follows one only if it is alone."""
        followed = Schedule(len(schedules[0]), schedules[0]) if len(schedules) == 1 else Schedule()
        self.recalled = schedules
        if followed != self.schedule:
            self.schedule = followed
            self.decisions.clear()

    def advance(self, step: int, reading: Reading) -> None:
        """Go to the next step."""
        self.step = step
        self.timestep = reading.value
        if reading.value is not None:
            self.seen.append(reading.value)

    # Lanes.

    def find_lane(self, call: Call) -> Lane | None:
        """The lane of a call at the current step, or None."""
        return self.lanes.find(call, self.step)

    def open_lane(self, call: Call) -> Lane:
        """The lane that a call continues with other inputs, or a new one (``stepping``)."""
        entered = enter_unknown(self.lanes, call, self.step)
        self.trusted = self.trusted and entered.is_certain
        if entered.note:
            self.note(entered.note)
        return entered.lane

    def free(self) -> None:
        """Close the generation and free every cached tensor."""
        self.lanes.free()
        self.table = None
        self.closed = True

    # Statistics.

    def note(self, text: str) -> None:
        """Note once why something was computed."""
        self.record.note(text)

    def finish_call(self, lane: Lane, record: StepRecord, graph: str) -> None:
        """Note what a graph did in a call. After the last step, free its cache."""
        self.record.add(record)
        self.record.measure(self.lanes)
        if self.is_last_step:
            self.lanes.close(lane, graph)

    def stats(self) -> RunStats:
        """Statistics of the steps so far."""
        return self.record.summary(
            lanes=self.lanes.num_opened,
            num_steps=self.schedule.num_steps if self.is_last_step else None,
        )


def _schedule_of(reading: Reading) -> Schedule:
    if reading.table is None:
        return Schedule()
    timesteps = reading.table.values[reading.index or 0 :]
    return Schedule(len(timesteps), timesteps)
