"""Model fit: whether a plan was tuned on the model that runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch

from pab_compile.errors import PlanError
from pab_compile.plans.plan import Plan
from pab_compile.plans.step_plan import StepPlan
from pab_compile.plans.tuned_model import TunedModel

OTHER_WEIGHTS = (
    "the plan was tuned on other weights of this architecture, so its quality is not known here: "
    "run pab_compile.tune with these weights to measure it"
)
NO_MODULE = (
    "the model could not be compared with the one that the plan was tuned on, since a function was "
    "compiled: compile the module"
)
_MOST = 8


def check_model(plan: Plan, module: torch.nn.Module | None, role: str = "") -> str:
    """Compare a model with the one that a plan was tuned on.

    Args:
        plan: the plan. Only those of ``tune`` name a model.
        module: that runs; None if it is unknown.
        role: of the module in a pipeline, for messages.

    Returns:
        What statistics should note; ``""`` if there is nothing.

    Raises:
        PlanError: the model has another architecture.
    """
    if not isinstance(plan, StepPlan) or plan.model is None:
        return ""
    if module is None:
        return NO_MODULE
    found = TunedModel.of(module)
    if misfit := plan.model.misfit(found):
        where = f" (the {role} of the pipeline)" if role else ""
        raise PlanError(f"{plan.origin} {misfit}.{where}")
    return OTHER_WEIGHTS if plan.model.has_other_weights(found) else ""


class ModelFit:
    """Compares each plan once with each model."""

    def __init__(self) -> None:
        self._known: list[tuple[Plan, Callable[[], torch.nn.Module | None], str]] = []

    def of(self, plan: Plan, module: torch.nn.Module | None) -> str:
        """What to note of a plan and a model; see ``check_model``."""
        for known, reference, note in self._known:
            if known is plan and reference() is module:
                return note
        note = check_model(plan, module)
        reference = (lambda: None) if module is None else weakref.ref(module)
        self._known = [*self._known[1 - _MOST :], (plan, reference, note)]
        return note
