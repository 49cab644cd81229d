"""How often a plan computes a site."""

from __future__ import annotations

from pab_compile.passes.sites.site import Site

from .decisions import Decisions
from .plan import CallablePlan, Plan
from .plan_file import TablePlan
from .schedule import Schedule

_NUM_STEPS = 30


def computed_share(plan: Plan, site: Site, schedule: Schedule | None = None) -> float:
    """The share of the steps at which a site is computed.

    Args:
        plan: the plan. A function counts as computing always, since it is asked only at run time.
        site: a site.
        schedule: the steps. If they are unknown, 30 steps that fall evenly from timestep 1000.
    """
    if isinstance(plan, CallablePlan) or not site.can_broadcast:
        return 1.0
    if schedule is None or schedule.num_steps is None:
        num_steps = plan.num_steps if isinstance(plan, TablePlan) else _NUM_STEPS
        falling = tuple(1000 * (1 - step / num_steps) for step in range(num_steps))
        schedule = Schedule(num_steps, falling)
    timesteps = schedule.timesteps or (0.0,)
    decisions = Decisions(plan, [site], schedule, timesteps[0])
    num_steps = schedule.num_steps
    assert num_steps is not None
    decided = (
        decisions.at(step, schedule.timesteps[step] if schedule.timesteps else None)
        for step in range(num_steps)
    )
    return sum(not at_step[0].reuses for at_step in decided) / num_steps
