"""How often a plan computes sites."""

from __future__ import annotations

from collections.abc import Sequence

from pab_compile.passes.sites.site import Site

from .decisions import Decisions
from .plan import CallablePlan, Plan
from .plan_file import TablePlan
from .schedule import Schedule
from .step_plan import StepPlan

_NUM_STEPS = 30


def computed_share(plan: Plan, site: Site, schedule: Schedule | None = None) -> float:
    """The share of the steps at which a site is computed. See ``share_of_any``."""
    return share_of_any(plan, [site], schedule)


def share_of_any(plan: Plan, sites: Sequence[Site], schedule: Schedule | None = None) -> float:
    """The share of the steps at which at least one of some sites is computed.

    Args:
        plan: the plan. A function counts as computing always, since it is asked only at run time.
        sites: the sites.
        schedule: the steps. If they are unknown, 30 steps that fall evenly from timestep 1000.
    """
    if isinstance(plan, CallablePlan) or not all(site.can_broadcast for site in sites):
        return 1.0
    if schedule is None or schedule.num_steps is None:
        schedule = assumed_schedule(plan)
    timesteps = schedule.timesteps or (0.0,)
    decisions = Decisions(plan, sites, schedule, timesteps[0])
    num_steps = schedule.num_steps
    assert num_steps is not None
    decided = (
        decisions.at(step, schedule.timesteps[step] if schedule.timesteps else None)
        for step in range(num_steps)
    )
    return sum(any(not site.reuses for site in step) for step in decided) / num_steps


def assumed_schedule(plan: Plan) -> Schedule:
    """The steps that stand for those of a generation whose steps are unknown."""
    num_steps = plan.num_steps if isinstance(plan, (TablePlan, StepPlan)) else _NUM_STEPS
    timesteps = plan.timesteps if isinstance(plan, StepPlan) else None
    falling = tuple(1000 * (1 - step / num_steps) for step in range(num_steps))
    return Schedule(num_steps, timesteps or falling)
