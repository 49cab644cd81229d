"""Guidance at single steps: where a plan computes one of the two prompts only.

A model is called with two prompts per step: in two calls, or in one call with both in the batch.
At steps of the plan only one of the two is computed. The *guidance difference* of a step is the
output of that one minus the output of the other one. The output that is left out is the computed
output minus a weighted sum of the last computed differences. In a plan file::

    "guidance": {"prompts": "calls", "weights": {"3": [-0.5, 1.5]}}
    "guidance": {"prompts": "batch", "computes": "second", "weights": {"3": [-0.5, 1.5]}}

Of two calls the first one computes, whichever prompt it has: the second one can be answered from
it. Of a batch either half can compute. Weights are of the differences of the last steps that
compute both, the oldest first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pab_compile.errors import PlanError
from pab_compile.passes.sites.site import OUTPUT

from .plan import COMPUTE, Entry, Weights, checked_entry

CALLS, BATCH = "calls", "batch"
FIRST, SECOND = "first", "second"


@dataclass(frozen=True)
class GuidancePlan:
    """Which steps compute one of the two prompts only.

    Attributes:
        prompts: where the two prompts are: in two ``"calls"``, or in one ``"batch"``.
        computes: which of the two calls or halves computes, ``"first"`` or ``"second"``.
        weights: one per step: weights of the last computed differences, or None.
    """

    prompts: str
    computes: str
    weights: tuple[Weights | None, ...]

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that compute one of the two prompts only."""
        return tuple(step for step, weights in enumerate(self.weights) if weights is not None)

    def sources(self, step: int, entries: Sequence[Entry]) -> tuple[int, ...]:
        """The steps whose differences a step combines, the oldest first."""
        weights = self.weights[step]
        assert weights is not None, f"step {step} computes both prompts"
        both = [s for s in range(step) if entries[s] == COMPUTE and self.weights[s] is None]
        return tuple(both[-len(weights) :])


def guidance_from_json(
    content: Any, entries: Sequence[Entry], cut: str, origin: str
) -> GuidancePlan | None:
    """Validate what a plan file says of guidance.

    Raises:
        PlanError: it is malformed.
    """
    if content is None:
        return None
    found = content.get("weights") if isinstance(content, Mapping) else None
    prompts = content.get("prompts") if isinstance(content, Mapping) else None
    if not isinstance(found, Mapping) or prompts not in (CALLS, BATCH):
        raise PlanError(
            f'{origin}: "guidance" needs "prompts", which is "calls" or "batch", and "weights" by '
            f"step; found {content!r}."
        )
    computes = content.get("computes", FIRST if prompts == CALLS else None)
    if computes not in ((FIRST,) if prompts == CALLS else (FIRST, SECOND)):
        raise PlanError(
            f'{origin}: "computes" of the guidance is the half of the batch that computes, "first" '
            f'or "second". Of two calls it is always the first one. Found {computes!r}.'
        )
    if prompts == BATCH and cut != OUTPUT:
        raise PlanError(
            f'{origin}: half of a batch is left out of whole calls, so "cut" must be "output"; '
            f"found {cut!r}."
        )
    weights: list[Weights | None] = [None] * len(entries)
    inner = {str(s) for s in range(len(entries) - 1) if entries[s] == COMPUTE}
    for name, listed in found.items():
        if name not in inner:
            raise PlanError(
                f"{origin}: guidance is left out at step {name!r}, which must compute and must not "
                "be the last one."
            )
        entry = checked_entry(listed, f"{origin}, guidance at step {name}")
        if not isinstance(entry, tuple):
            raise PlanError(f"{origin}: guidance at step {name} needs weights, found {listed!r}.")
        weights[int(name)] = entry
    plan = GuidancePlan(prompts, computes, tuple(weights))
    for step in plan.steps:
        have, needed = len(plan.sources(step, entries)), len(weights[step] or ())
        if have < needed:
            raise PlanError(
                f"{origin}: guidance at step {step} combines {needed} computed differences, but "
                f"only {have} steps before it compute both prompts."
            )
    return plan


def guidance_to_json(plan: GuidancePlan) -> dict[str, Any]:
    """What a plan file says of guidance."""
    weights = {str(step): list(plan.weights[step] or ()) for step in plan.steps}
    return {"prompts": plan.prompts, "computes": plan.computes, "weights": weights}
