"""Adopting: how a compiled graph takes over a plan that was exchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pab_compile.passes.sites.site import Site
from pab_compile.plans.form import Form
from pab_compile.plans.live import LivePlan
from pab_compile.runtime.generation import Generation


@dataclass(frozen=True)
class Adopting:
    """What a program needs to know if its plan can be exchanged.

    Attributes:
        plan: the plan.
        form: what the program was compiled for.
        sites: the sites that a plan must fit; empty if they are only a part of the model's.
    """

    plan: LivePlan
    form: Form | None
    sites: Sequence[Site]

    def adopt(self, generation: Generation) -> None:
        """Let the plan hold at the current step, if this is the first call of the step.

        Raises:
            PlanError: the plan does not fit the sites.
        """
        choice = self.plan.current()
        if generation.adopt(choice) and self.sites:
            choice.plan.check(self.sites)
        if generation.choice is not None:
            self.plan.warn_of_few(generation.choice, generation.schedule)

    def form_in(self, generation: Generation) -> Form | None:
        """The form of the plan that holds at the current step."""
        return self.form if generation.choice is None else generation.choice.form
