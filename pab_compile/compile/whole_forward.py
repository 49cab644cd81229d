"""Whole forward: checks that need all graphs of a forward, made after the forward is over.

A graph does not show whether it is the last one of its forward. So the check of a forward runs
when the next forward begins with the same program.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import fx

from pab_compile.errors import UnsupportedModelError
from pab_compile.passes.axes.stated import check_names
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.join import Given, Part
from pab_compile.plans.plan import Plan
from pab_compile.runtime.forward import Forward

from .analysis import nothing_found
from .runnable import Runnable


class WholeForward:
    """Checks, once per plan, the forwards that begin with one Dynamo graph."""

    def __init__(self) -> None:
        self._checked: Plan | None = None

    def check(
        self,
        before: Iterable[Forward],
        program: Runnable,
        plan: Plan,
        axes: Mapping[str, str],
    ) -> UnsupportedModelError | None:
        """Check the last forward that began with a program.

        Args:
            before: the forwards before the current one, the latest first.
            program: the program with which the current forward begins.
            plan: the plan that the sites of all graphs together must fit.
            axes: what the user states of inputs, each of which some graph must have.

        Returns:
            Why nothing in that forward can be reused; None if something can, or if the forward was
            checked before.

        Raises:
            PlanError: the plan does not fit the sites of the forward.
            StatedAxesError: a stated input is none of the forward.
        """
        alike = [other for other in before if other.visited[:1] == [program]]
        if not alike or alike[0].failed:
            return None
        last, others = alike[0], alike[1:]
        if any(_goes_on(other, last) for other in others):
            last.fail()  # it was broken off
            return None
        is_over = not last.breaks[-1] or any(other.visited == last.visited for other in others)
        if self._checked is plan or not is_over:
            return None
        self._checked = plan
        sites = [site for ran in last.visited for site in ran.sites]
        if not sites:
            return nothing_found(last.findings, last.breaks)
        plan.check(sites)
        parts = [ran.part for ran in last.visited if ran.part is not None]
        if len(parts) == len(last.visited):
            check_names([node for part in parts for node in _given(part)], axes)
        return None


def _given(part: Part) -> list[fx.Node]:
    """The inputs of a graph that the caller passes."""
    inputs = ir.placeholders(part.graph_module.graph)
    pairs = zip(inputs, part.origins, strict=True)
    return [node for node, origin in pairs if isinstance(origin, Given)]


def _goes_on(longer: Forward, shorter: Forward) -> bool:
    """Whether a forward ran the graphs of another one and then more."""
    length = len(shorter.visited)
    return longer.visited[:length] == shorter.visited != longer.visited
