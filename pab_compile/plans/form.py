"""Forms: how a graph is cut, for many plans at once.

A compiled graph depends on a plan only through what is cached together and what has a branch. A
plan that may be exchanged while the model runs is compiled in a form that serves many plans. All
plans that treat every site alike have one form, and so does a plan that reuses nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from pab_compile.errors import InvariantError
from pab_compile.passes.sites.site import KINDS, OUTPUT, Site

from .plan import MAX_ORDER, CallablePlan, Plan, RangePlan
from .plan_file import TablePlan
from .schedule import Moment
from .step_plan import StepPlan

ALL, KIND, EACH, NONE = "all", "kind", "each", "none"


@dataclass(frozen=True)
class Form:
    """What a graph is compiled for. It stands for each of the plans that it serves.

    Attributes:
        cut: the option ``cut``.
        coalesce: the option ``coalesce``.
        together: which sites always compute together: ``all``, those of one ``kind``, or ``each``
            only with itself. ``none`` if no site has a branch.
        has_mlps: whether the plans may reuse sites of the kind ``mlp``.
    """

    cut: str
    coalesce: bool
    together: str
    has_mlps: bool

    @staticmethod
    def of(plan: Plan, cut: str, coalesce: bool) -> Form:
        """The form of a plan.

        Args:
            plan: the plan.
            cut: the option ``cut``.
            coalesce: the option ``coalesce``. Without it no sites are merged, so it does not matter
                which of them compute together.
        """
        if cut == OUTPUT:
            return Form(cut, False, EACH, True)
        has_mlps = plan.ranges.get("mlp", 1) > 1 if isinstance(plan, RangePlan) else True
        return Form(cut, coalesce, _together(plan) if coalesce else EACH, has_mlps)

    def uncut(self) -> Form:
        """The form without any branch, for plans that reuse nothing. Most forms share it."""
        return Form(OUTPUT if self.cut == OUTPUT else "attention", False, NONE, False)

    def entry(self, site: Site, moment: Moment) -> int:
        """A form decides nothing."""
        raise InvariantError(f"a form was asked what {site.name} does at step {moment.step}")

    def may_reuse(self, site: Site) -> bool:
        """Whether a plan of this form may reuse the site."""
        return self.together != NONE and (self.has_mlps or site.kind != "mlp")

    def range_of(self, site: Site) -> None:
        """A form has no range."""
        return None

    def max_order(self, site: Site) -> int:
        """The highest order of any plan."""
        return MAX_ORDER

    def pattern(self, site: Site) -> Hashable | None:
        """Equal for sites that compute together under every plan of this form."""
        if not self.may_reuse(site) or self.together == EACH:
            return None
        return tuple(sorted(site.kinds)) if self.together == KIND else ALL

    def check(self, sites: Sequence[Site]) -> None:
        """Every graph fits a form."""


def check_together(plan: Plan, sites: Sequence[Site]) -> None:
    """Check that a plan treats all sites alike that were merged.

    Args:
        plan: the plan.
        sites: sites, some of which may be merged.

    Raises:
        InvariantError: the form is that of other plans.
    """
    for site in sites:
        reused = [single for single in site.parts if plan.may_reuse(single)]
        patterns = {plan.pattern(single) for single in reused}
        if reused and (None in patterns or len(patterns) > 1 or len(reused) < len(site.parts)):
            raise InvariantError(
                f"{site.parts[0].name} and {len(site.parts) - 1} other sites were merged, but the "
                "plan does not treat them alike"
            )


def reuses_nothing(plan: Plan) -> bool:
    """Whether a plan, or every plan of a form, certainly reuses nothing."""
    if isinstance(plan, Form):
        return plan.together == NONE
    return isinstance(plan, RangePlan) and max([1, *plan.ranges.values()]) == 1


def _together(plan: Plan) -> str:
    """Which sites a plan always computes together, whatever the model."""
    if isinstance(plan, RangePlan):
        rules = {(plan.ranges.get(kind, 1), plan.predict.get(kind, 0)) for kind in KINDS}
        return ALL if len(rules) == 1 else KIND
    if isinstance(plan, StepPlan):
        return ALL
    if isinstance(plan, TablePlan):
        is_row = plan.calibrated is not None and len(set(plan.entries.values())) == 1
        return ALL if is_row else EACH
    assert isinstance(plan, CallablePlan), plan
    return EACH
