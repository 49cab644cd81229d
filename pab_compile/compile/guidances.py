"""Which kind of guidance a call has, by the plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from pab_compile.plans.guidance import CALLS
from pab_compile.plans.step_plan import StepPlan
from pab_compile.runtime.generation import Place

from .batch_guidance import BatchGuidance
from .guidance import CallGuidance

if TYPE_CHECKING:
    from .executor import Executor

_SHARED = (
    "guidance was computed at all steps: two halves of the ranks share the calls of a step, so "
    "none has both"
)


def guidance_of(
    executor: Executor, place: Place, inputs: Sequence[torch.Tensor], is_limited: bool
) -> CallGuidance | BatchGuidance | None:
    """The guidance of a call; None if the plan computes it at every step.

    Args:
        executor: runs the graph.
        place: where the call belongs.
        inputs: of the graph.
        is_limited: whether the memory for the cache is limited.
    """
    generation = place.generation
    plan = executor.plan_in(generation)
    if not isinstance(plan, StepPlan) or plan.guidance is None or not plan.guidance.steps:
        return None
    schedule = generation.schedule
    is_fit = schedule.num_steps is not None and not plan.misfit(schedule)
    may_turn_out_fit = generation.step == 0  # which may know a first guess of its schedule alone
    if not generation.trusted or not (is_fit or may_turn_out_fit):
        return None
    if executor.together is not None and executor.together.halves is not None:
        generation.note(_SHARED)
        return None
    if plan.guidance.prompts == CALLS:
        return CallGuidance(executor, place, plan, is_limited)
    return BatchGuidance(executor, place, plan, inputs, is_limited)
