"""Continuation: the rule by which a call is believed to continue a generation.

Wrong belief would reuse the outputs of another picture. So the timestep of a call must be exactly
the next of a known schedule: one that the user stated, the scheduler's own table, one in the
callers' variables, or evenly spaced timesteps. The tracker has checked before that the function
that loops over the steps is still running (``Generation.depth_in``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .generation import Generation
from .lane import Call
from .spacing import is_evenly_spaced
from .visible_schedule import VisibleSchedule, find_schedules, may_repeat, precision_of


@dataclass(frozen=True)
class Step:
    """The step of a call.

    Attributes:
        index: number of the step.
        stride: more than 1 if the sampler turns out to take only every second, third, ... timestep.
        is_between: whether it turns out to call the model between the timesteps of its schedule.
        is_shown: whether a known schedule or the user's word for one generation shows it. If not,
            the timestep only goes onwards.
    """

    index: int
    stride: int = 1
    is_between: bool = False
    is_shown: bool = True


def step_of(generation: Generation, call: Call) -> Step | None:
    """The step of a call in a generation; None if it does not continue it."""
    reading, here, following = call.reading, generation.step, generation.step + 1
    if call.index is not None:
        return Step(call.index) if call.index in (here, following) else None
    if generation.around or _begins_between(generation, call):
        return _step_between(generation, call)
    if generation.table is not None or reading.table is not None:
        return _step_in_table(generation, call)
    if reading.value is None or generation.timestep is None:
        return None
    is_equal = reading.value == generation.timestep
    if is_equal and not _has_other_latents(generation, call):
        return Step(here)
    going_on = [v for v in generation.visible if v.has(following, reading.value)]
    if going_on and (not is_equal or _is_twice(going_on, generation.visible, following)):
        return Step(following)
    if generation.is_stated and _follows_stated(generation, call):
        return Step(following)
    if is_equal:
        return Step(here)
    is_second = here == 0 and generation.is_of(call.callers)
    stride = _stride(generation.visible, reading.value) if is_second else None
    if stride is not None:
        return Step(following, stride)
    # At the second call, what was taken for the schedule may turn out to be something else.
    if not _goes_onwards(generation.seen, reading.value) or (
        generation.visible and not is_second and not generation.is_one
    ):
        return None
    timesteps = [*generation.seen, reading.value]
    is_shown = generation.is_one or here == 0 or is_evenly_spaced(timesteps, call.clock_dtype)
    return Step(following, is_shown=is_shown)


def _begins_between(generation: Generation, call: Call) -> bool:
    """Whether the second call lies between the first two timesteps of the schedule in sight.

    Samplers of second order that take one step at a time call the model there. A timestep of
    another schedule in sight may be of another video.
    """
    value, shown = call.reading.value, generation.shown
    if generation.step > 0 or value is None or len(shown) < 2:
        return False
    precision = precision_of(call.clock_dtype)
    is_apart = not any(math.isclose(value, each, rel_tol=precision) for each in shown[:2])
    if not (is_apart and min(shown[:2]) < value < max(shown[:2])):
        return False
    others = find_schedules(call.callers, value, call.clock_dtype, call.rows)
    return generation.is_of(call.callers) and not others


def _step_between(generation: Generation, call: Call) -> Step | None:
    """The step of a call of such a sampler: it goes on, at most to the next of the schedule."""
    value, here = call.reading.value, generation.timestep
    if value is None or here is None:
        return None
    if value == here:
        return Step(generation.step)
    if not _goes_onwards(generation.seen, value):
        return None
    shown = generation.around or generation.shown
    sign = -1 if shown[-1] < shown[0] else 1
    slack = precision_of(call.clock_dtype) * max(map(abs, shown))
    following = next((each for each in shown if sign * (each - here) > slack), None)
    if following is not None and sign * (value - following) > slack:
        return None
    return Step(generation.step + 1, is_between=not generation.around)


def _follows_stated(generation: Generation, call: Call) -> bool:
    """Whether a call is of the next step of a schedule that the user stated, in whatever unit.

    A timestep that came before is the next step's only if the schedule may have it twice. Else it
    is another call of the same step, such as one of another window or with other weights.
    """
    value, timesteps = call.reading.value, generation.schedule.timesteps
    assert value is not None
    if value != generation.timestep:
        return _goes_onwards(generation.seen, value)
    return timesteps is None or may_repeat(timesteps, generation.step, value, call.clock_dtype)


def _is_twice(
    going_on: Sequence[VisibleSchedule], schedules: Sequence[VisibleSchedule], step: int
) -> bool:
    """Whether a timestep that came before is the next step's, and not another call of its step.

    It is if a schedule repeats it. Timesteps may also be equal after rounding. Then every schedule
    must have both, since numbers that are no schedule may be as close.
    """
    if any(each.timesteps[step] == each.timesteps[step - 1] for each in going_on):
        return True
    rows = [each.timesteps for each in schedules]
    ends = [any(len(r) > len(row) and r[-len(row) :] == row for r in rows) for row in rows]
    return all(is_end or v in going_on for v, is_end in zip(schedules, ends, strict=True))


def _stride(schedules: Sequence[VisibleSchedule], timestep: float) -> int | None:
    """Every how many timesteps of a schedule a sampler takes whose second timestep is given."""
    for schedule in schedules:
        for stride in range(2, len(schedule.timesteps)):
            if schedule.has(stride, timestep):
                return stride
    return None


def is_over(generation: Generation) -> bool:
    """Whether at most one step is left of a generation, as far as its timesteps show."""
    if generation.schedule.is_known:
        return generation.is_nearly_done
    seen = generation.seen
    if len(seen) < 2:
        return False
    following = 2 * seen[-1] - seen[-2]
    return following <= 0 if seen[-1] < seen[-2] else following >= (1 if following < 2 else 1000)


def _step_in_table(generation: Generation, call: Call) -> Step | None:
    reading = call.reading
    if reading.index is None or generation.table is not reading.table:
        return None
    index, rest = divmod(reading.index - generation.origin, generation.stride)
    if rest == 0 and index in (generation.step, generation.step + 1):
        return Step(index)
    if generation.step == 0 and index > 1 and generation.is_of(call.callers):
        return Step(1, stride=index)
    return None


def _has_other_latents(generation: Generation, call: Call) -> bool:
    """Whether a lane was called at this step with other latents.

    Then the schedule has the timestep twice, or it is another video.
    """
    lane = generation.find_lane(call)
    return (
        lane is not None
        and lane.step == generation.step
        and not lane.latents.is_same_memory(call.latents)
        and not lane.is_beside(call)
    )


def _goes_onwards(seen: Sequence[float], value: float) -> bool:
    if len(set(seen)) < 2:
        return value != seen[-1]
    return value < seen[-1] if seen[-1] < seen[0] else value > seen[-1]
