"""Generations: whose cached outputs a call may use.

A *generation* is one run of the sampler. Its calls belong to *lanes* (``lane``). Calls that do not
continue a generation start a new one, and compute. A generation whose calls may belong to two runs
of the sampler is not trusted, and computes at every step.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pab_compile.plans.decisions import Decisions
from pab_compile.plans.live import NOTHING, Choice
from pab_compile.plans.schedule import Schedule

from .allowance import Allowance
from .caller import NOBODY, Callers, Run, is_suspended
from .clock import TimestepTable
from .lane import Call, Lane, Lanes
from .loops import Doubt, StepLoop
from .spacing import has_bounds, is_at_end
from .stats import GenerationRecord, RunStats, StepRecord
from .stepping import enter_unknown
from .visible_schedule import VisibleSchedule, find_schedules, holder_of, is_timestep

_REMEDY = "; if all calls are of one video: call the model in `with pab_compile.generation():`"
_MAY_BE_SINGLE = (
    "the outputs of the first step were not reused, since its call may have been a single one, "
    "such as a warm-up, or of another loop" + _REMEDY
)
_OTHER_LINE = (
    "the outputs of the steps before step {} were not reused, since it was called from another "
    "line of the code than they, and may be of another video" + _REMEDY
)
_OTHER_TURN = (
    "the outputs of the steps before step {} were not reused, since a loop around the calls went "
    "on between them, and they may be of another video" + _REMEDY
)
_UNSEEN_TURNS = (
    "a loop around the loop over steps assigns no variable, so it is unknown when another video "
    "begins, and nothing was reused: wrap each video in pab_compile.generation()"
)
_SWITCHED = (
    "the plan changed from {!r} to {!r} at step {}: a site computes until all outputs that the new "
    "plan reuses were computed"
)


@dataclass(frozen=True, eq=False)
class Place:
    """Where one call of the model belongs, and what it did. The graphs of a forward share it."""

    generation: Generation
    lane: Lane
    record: StepRecord


class Generation:
    """One run of the sampler with one model.

    Args:
        call: its first call.
        trusted: as the attribute.
        is_stated: as the attribute.
        is_one: as the attribute.

    Attributes:
        step: the current step.
        timestep: the timestep that was read at the current step; None if the user stated the step.
        first_timestep: the timestep of the first step.
        table: the scheduler's table of timesteps, if the timestep is a view of one.
        origin: index of the first step in the table.
        stride: every how many timesteps of the table the sampler takes.
        seen: the timesteps that were read, in order.
        schedule: what is known of the steps.
        is_stated: whether the user gave the schedule.
        is_one: whether the user said that all calls are of one generation, whoever makes them.
        visible: schedules of the callers that this generation may follow, the likeliest first.
        around: the schedule, if the sampler also calls the model between its timesteps.
        trusted: whether all calls are of one generation. If not, everything computes.
        first_reusable_step: earliest step whose outputs may be reused. It is 1 if the first call
            may be a single one, such as a warm-up.
        decisions: graph -> its decisions.
        choice: the plan that holds at this step, if plans can be exchanged.
        is_switched: whether another plan held at an earlier step.
        lanes: the calls per step.
        allowance: which sites are cached, if the memory for caches is limited.
        record: what is noted for the statistics.
        keeps_lanes: whether lanes stay open after their last step, until ranks answered both calls.
        closed: whether the generation is over.
    """

    def __init__(
        self, call: Call, trusted: bool = True, is_stated: bool = False, is_one: bool = False
    ) -> None:
        reading = call.reading
        self.step = call.index or 0
        self.timestep = reading.value
        self.first_timestep = 0.0 if reading.value is None else reading.value
        self.table: TimestepTable | None = reading.table
        self.origin = reading.index or 0
        self.stride = 1
        self.seen: list[float] = [] if reading.value is None else [reading.value]
        self.schedule = call.schedule or Schedule()
        self.is_stated = is_stated
        self.is_one = is_one
        self.visible: list[VisibleSchedule] = []
        self.around: tuple[float, ...] = ()
        self.trusted = trusted
        self.decisions: dict[str, Decisions] = {}
        self.choice: Choice | None = None
        self.is_switched = False
        self._chosen_at: int | None = None
        self.lanes = Lanes()
        self.allowance = Allowance()
        self.record = GenerationRecord()
        self.keeps_lanes = False
        self.closed = False
        self._clock_dtype = call.clock_dtype
        self._is_told = call.index is not None
        self._path: tuple[Run, ...] = () if is_one else call.callers.runs
        self._holder: Run | None = None  # the function that has the schedule in a variable
        self._loop: Run | None = None  # the function that loops over the steps
        self._end: Run | None = None  # calls back when the loop is over
        self._why_not_earlier = _MAY_BE_SINGLE
        self._step_loop = StepLoop(NOBODY if is_one else call.callers, _is_timestep_of(call))
        if not self.schedule.is_known:
            self._find_schedule(call)
        self.first_reusable_step = 0 if self.schedule.is_known or is_one else 1

    # Steps and schedule.

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

    @property
    def seems_done(self) -> bool:
        """Whether no step follows, as far as the timesteps show. A step that follows computes."""
        if self.is_last_step:
            return True
        if self.visible:
            return self.is_nearly_done and has_bounds(self.schedule.timesteps or ())
        return not self.schedule.is_known and is_at_end(self.seen, self._clock_dtype)

    def advance(self, step: int, call: Call) -> None:
        """Go to the next step."""
        self._follow_loop(call)
        self.step = step
        self.timestep = call.reading.value
        if self.timestep is not None:
            self.seen.append(self.timestep)
            if self.visible:
                self._follow([v for v in self.visible if v.has(step, self.timestep)])

    def take_every(self, stride: int) -> None:
        """Note that the sampler takes every second, third, ... timestep of its schedule."""
        self.first_reusable_step = 0 if self.is_one else 1
        if self.table is not None:
            self.stride = stride
            timesteps = self.table.values[self.origin :: stride]
            self._set_schedule(Schedule(len(timesteps), timesteps))
        else:
            self.visible = [v.every(stride) for v in self.visible if len(v.timesteps) > stride]

    @property
    def shown(self) -> tuple[float, ...]:
        """The timesteps of the schedule that is in sight, from the first step on; or ``()``."""
        if self.table is not None:
            return self.table.values[self.origin :: self.stride]
        return self.visible[0].timesteps if self.visible else ()

    def take_between(self) -> None:
        """Note that the sampler also calls the model between the timesteps of its schedule.

        Then it is unknown how many steps there are.
        """
        self.around, self.visible = self.shown, []
        self._set_schedule(Schedule())

    def _find_schedule(self, call: Call) -> None:
        reading = call.reading
        if reading.table is not None:
            timesteps = reading.table.values[self.origin :]
            self.schedule = Schedule(len(timesteps), timesteps)
            self._holder = holder_of(call.callers, reading.table.base)
        elif reading.value is not None:
            dtype = call.clock_dtype
            self._follow(find_schedules(call.callers, reading.value, dtype, call.rows))
            self._holder = self.visible[0].holder if self.visible else None

    def _follow(self, schedules: list[VisibleSchedule]) -> None:
        """Follow the first of these schedules. Without one the number of steps is unknown."""
        self.visible = schedules
        timesteps = schedules[0].timesteps if schedules else None
        self._set_schedule(Schedule(len(timesteps), timesteps) if timesteps else Schedule())

    def _set_schedule(self, schedule: Schedule) -> None:
        if schedule != self.schedule:
            self.schedule = schedule
            self.decisions.clear()

    # The plan.

    def adopt(self, choice: Choice) -> bool:
        """Let a plan hold at the current step, unless an earlier call of the step had another one.

        Returns:
            Whether the plan did not hold before.
        """
        if self._chosen_at == self.step:
            return False
        before, self._chosen_at = self.choice, self.step
        if choice == before:
            return False
        self.choice = choice
        self.decisions.clear()
        if before is None:
            return True
        self.is_switched = True
        self.note(_SWITCHED.format(before.name, choice.name, self.step))
        if choice.form != before.form or choice.plan == NOTHING:  # other graphs run, or none reuses
            for lane in self.lanes:
                lane.free()
        return True

    # Callers.

    def depth_in(self, callers: Callers) -> int | None:
        """Position of the function that loops over the steps of this generation.

        It is None if none of these functions does, and 0 if nothing is known of them.
        """
        if not callers.runs or not self._path:
            return 0
        if self._loop is not None:
            return callers.depth(self._loop)
        if self.may_wait(callers):
            return None
        return callers.depth(callers.innermost_in(self._path))

    def is_of(self, callers: Callers) -> bool:
        """Whether the function that called the first step, or that has its schedule, calls now.

        If another run of a function calls, it may be one step of this generation or the begin of
        another one.
        """
        if not callers.runs or not self._path:
            return True
        return callers.runs[0] is self._path[0] or self._holder in callers.runs

    def may_loop_in(self, callers: Callers) -> bool:
        """Whether these functions may call its next step."""
        if self._loop is None:
            return self.is_of(callers)
        return self._loop in callers.runs

    def is_left(self, callers: Callers) -> bool:
        """Whether a loop around the loop over steps went on, so that another video begins."""
        return not self._is_told and self._step_loop.is_left(callers, self._loop)

    def may_wait(self, callers: Callers) -> bool:
        """Whether it may go on after others: its loop is a suspended generator or coroutine."""
        return any(is_suspended(run) for run in self._path if run not in callers.runs)

    def _follow_loop(self, call: Call) -> None:
        """Learn which function loops over the steps: the innermost that ran at both steps."""
        if not self._path:
            return
        callers = call.callers
        inner = callers.innermost_in(self._path)
        if not self._is_told:
            self._check_loop(inner, callers)
            self._check_turn(self._step_loop.follow(callers, inner, _is_timestep_of(call)))
        self._loop, self._path = inner, callers.runs

    def enter(self, lane: Lane, call: Call) -> None:
        """Note that a call belongs to a lane."""
        self._step_loop.call(call.callers)
        looked_at = self._loop if self._path and not self._is_told else None
        lane.called(call, self.step, looked_at)

    def first_reusable(self, lane: Lane) -> int:
        """Earliest step whose outputs in a lane are surely of this generation."""
        return max(self.first_reusable_step, lane.first_reusable_step)

    def may_reuse_from(self, lane: Lane, step: int) -> bool:
        """Whether the outputs of a step are surely of this generation. If not, notes why."""
        if step < self.first_reusable_step:
            self.note(self._why_not_earlier)
        elif step < lane.first_reusable_step:
            self.note(_OTHER_LINE.format(lane.first_reusable_step))
        return step >= self.first_reusable(lane)

    def _check_loop(self, inner: Run | None, callers: Callers) -> None:
        """Note which outputs may be of another loop, and when this one is over."""
        if self._loop is None and not self.is_of(callers):
            self.first_reusable_step = max(self.first_reusable_step, 1)
        elif self._loop is not None and inner is not self._loop:
            self.first_reusable_step = self.step  # the steps before were another loop's
        mark = inner() if inner is not None and inner is not self._loop else None
        if mark is not None:
            self._end = weakref.ref(mark, functools.partial(_free, weakref.ref(self)))

    def _check_turn(self, doubt: Doubt) -> None:
        """Note which outputs may be of another turn of a loop around the loop over steps."""
        if doubt is Doubt.ALL_STEPS and self.trusted:
            self.distrust(_UNSEEN_TURNS)
        elif doubt is Doubt.EARLIER_STEPS:
            self.first_reusable_step = max(self.first_reusable_step, self.step + 1)
            self._why_not_earlier = _OTHER_TURN.format(self.first_reusable_step)

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

    def distrust(self, why: str) -> None:
        """Compute from here on, since calls may belong to another generation."""
        self.trusted = False
        self.note(why)
        for lane in self.lanes:
            lane.free()

    # Statistics.

    def note(self, text: str) -> None:
        """Note once why something was computed."""
        self.record.note(text)

    def finish_call(self, lane: Lane, record: StepRecord, graph: str) -> None:
        """Note what a graph did in a call. After the last step, free its cache.

        If the number of steps is unknown, the timesteps show the last step (``seems_done``).
        """
        record.lane = lane.number
        self.record.add(record)
        if self.seems_done and not self.keeps_lanes:
            self.lanes.close(lane, graph)

    def stats(self) -> RunStats:
        """Statistics of the steps so far."""
        return self.record.summary(
            lanes=self.lanes.num_opened,
            num_steps=self.schedule.num_steps if self.is_last_step else None,
        )


def _is_timestep_of(call: Call) -> Callable[[Any], bool]:
    """What tells whether a variable is the timestep of a call. It does not hold the call."""
    timestep, dtype = call.reading.value, call.clock_dtype
    return lambda value: timestep is not None and is_timestep(value, timestep, dtype)


def _free(generation: weakref.ref[Generation], _: Run) -> None:
    """The loop over the steps is over, or was broken off."""
    if (found := generation()) is not None:
        found.free()
