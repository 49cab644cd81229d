"""Nothing: why a plan reuses nothing in a generation."""

from __future__ import annotations

from collections.abc import Collection

from .plan import Plan, RangePlan
from .schedule import Moment, Schedule
from .step_plan import StepPlan


def why_nothing(plan: Plan, kinds: Collection[str], schedule: Schedule) -> str:
    """Why no step of a generation reuses anything, for the statistics.

    Args:
        plan: the plan.
        kinds: the kinds of the sites that the model has.
        schedule: the steps; their number must be known.
    """
    assert schedule.num_steps is not None
    if isinstance(plan, StepPlan) and (misfit := plan.misfit(schedule)):
        return f"nothing was reused: {misfit[0].lower()}{misfit[1:]}"
    if isinstance(plan, RangePlan):
        reused = sorted(kind for kind, every in plan.ranges.items() if every > 1)
        if not reused:
            return "nothing was reused: the plan reuses no kind of site"
        if not set(reused) & set(kinds):
            return (
                f"nothing was reused: the plan reuses {', '.join(reused)}, and the sites of this "
                f"model are {', '.join(sorted(kinds)) or 'none'}"
            )
        if schedule.num_steps < plan.min_steps:
            return (
                f"nothing was reused: the generation has {schedule.num_steps} steps, and the plan "
                f"reuses from {plan.min_steps} steps on"
            )
        if not any(plan.is_inside(moment) for moment in _moments(schedule)):
            return f"nothing was reused: no step lies in the window {plan.window}{_span(schedule)}"
    return (
        f"nothing was reused: the plan computes every site at each of the {schedule.num_steps} "
        "steps; a schedule of few steps leaves little to reuse"
    )


def _moments(schedule: Schedule) -> list[Moment]:
    assert schedule.num_steps is not None
    timesteps = schedule.timesteps or (None,) * schedule.num_steps
    first = timesteps[0] or 0.0
    return [Moment(step, t, first, schedule) for step, t in enumerate(timesteps)]


def _span(schedule: Schedule) -> str:
    """What the bounds of a window could be."""
    if schedule.timesteps is None:
        return "; integer bounds are timesteps, which are not known here"
    first, last = schedule.timesteps[0], schedule.timesteps[-1]
    return f"; integer bounds are timesteps, which go from {first:g} to {last:g} here"
