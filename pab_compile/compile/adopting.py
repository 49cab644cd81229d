"""Adopting: how a compiled graph takes over a plan that was exchanged.

A plan that reuses nothing runs in the form of other plans, so that nothing is compiled for it. It
must give what the model itself gives, bit for bit. A cut may separate an op of the model that
multiplies and adds in one (``passes.graph.fused``). Then the graph is compiled without cuts, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pab_compile.passes.sites.site import Site
from pab_compile.plans.form import Form
from pab_compile.plans.live import NOTHING, Choice, LivePlan
from pab_compile.plans.plan import Plan
from pab_compile.report.explanation import Finding
from pab_compile.runtime.generation import Generation

_MAX_FINDINGS = 16


class Adopting:
    """What a program needs to know if its plan can be exchanged.

    Args:
        plan: the plan.
        form: what the program was compiled for.
        sites: the sites that a plan must fit; empty if they are only a part of the model's.
        is_exact: whether a step that computes everything rounds as the model does.
        describe: what ``explain`` says of the graph under a plan.

    Attributes:
        form: as given.
        rows: gives rows of numbers one of which may be the schedule.
    """

    def __init__(
        self,
        plan: LivePlan,
        form: Form,
        sites: Sequence[Site],
        is_exact: bool,
        describe: Callable[[Plan], Finding],
    ) -> None:
        self.form = form
        self.rows = plan.rows
        self._plan = plan
        self._sites = sites
        self._is_exact = is_exact
        self._describe = describe
        self._findings: dict[int, tuple[Choice, Finding]] = {}

    def adopt(self, generation: Generation) -> None:
        """Let the plan hold at the current step, if this is the first call of the step.

        Raises:
            PlanError: the plan does not fit the sites.
        """
        choice = self._plan.current()
        if generation.adopt(choice) and self._sites:
            choice.plan.check(self._sites)
        if generation.choice is not None:
            self._plan.warn_of_few(generation.choice, generation.schedule)

    def form_in(self, generation: Generation) -> Form:
        """What must run at the current step, for the plan that holds."""
        choice = generation.choice
        if choice is None:
            return self.form
        is_off = choice.plan == NOTHING
        return choice.form.uncut() if is_off and not self._is_exact else choice.form

    def finding(self, generation: Generation) -> Finding:
        """What ``explain`` says of the graph, under the plan that holds at the current step."""
        choice = generation.choice
        assert choice is not None, "no plan holds in this generation"
        known = self._findings.get(id(choice))
        if known is None or known[0] is not choice:
            if len(self._findings) >= _MAX_FINDINGS:
                self._findings.clear()
            known = self._findings[id(choice)] = choice, self._describe(choice.plan)
        return known[1]
