"""Settings: what all graphs of one ``torch.compile`` call have in common."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from pab_compile.options import Options
from pab_compile.plans.form import Form
from pab_compile.plans.live import LivePlan
from pab_compile.plans.plan import Plan

from .lower import PieceCompiler


@dataclass(frozen=True, eq=False)
class Settings:
    """What all graphs of one ``torch.compile`` call have in common.

    Attributes:
        options: how to compile.
        plan: the plan that the options describe. If it is live: the form, for all its plans.
        compiler: compiles the pieces.
        compilation: identifies the ``torch.compile`` call: the options as the user gave them.
        live: the plan that can be exchanged, if there is one.
        sharing: the table by which ranks chose how they share a generation, if they did.
    """

    options: Options
    plan: Plan
    compiler: PieceCompiler
    compilation: object
    live: LivePlan | None = None
    sharing: tuple[str, ...] = ()

    @property
    def plan_now(self) -> Plan:
        """The plan that holds for the running code."""
        return self.live.current().plan if self.live is not None else self.plan

    def for_form(self, form: Form | None) -> Settings:
        """The same settings for a form of the live plan."""
        if form is None:
            return self
        options = replace(self.options, cut=form.cut, coalesce=form.coalesce)
        return replace(self, options=options, plan=form)

    def with_stepping(self, clock: str, names: Collection[str]) -> Settings:
        """The same settings for a graph with a known clock, and inputs that change with it."""
        if not names:
            return self
        axes = {**self.options.axes, **dict.fromkeys(sorted(names), "step"), clock: "clock"}
        return replace(self, options=replace(self.options, axes=axes))
