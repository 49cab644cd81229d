"""Guidance at single steps: where a plan computes the conditional call only.

The *guidance difference* of a step is the output of its conditional call minus that of its
unconditional call. At steps of the plan it is a weighted sum of the last computed differences. The
unconditional call is then answered with the conditional output minus this sum. In a plan file::

    "guidance": {"conditional": "first", "weights": {"3": [-0.5, 1.5]}}

``conditional`` says which of the two calls of a step is the conditional one. Weights are of the
differences of the last steps that compute both calls, the oldest first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pab_compile.errors import PlanError

from .plan import COMPUTE, Entry, Weights, checked_entry

FIRST, SECOND = "first", "second"


@dataclass(frozen=True)
class GuidancePlan:
    """Which steps compute the conditional call only.

    Attributes:
        conditional: which of the two calls of a step is conditional, ``"first"`` or ``"second"``.
        weights: one per step: weights of the last computed differences, or None.
    """

    conditional: str
    weights: tuple[Weights | None, ...]

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that compute the conditional call only."""
        return tuple(step for step, weights in enumerate(self.weights) if weights is not None)

    def sources(self, step: int, entries: Sequence[Entry]) -> tuple[int, ...]:
        """The steps whose differences a step combines, the oldest first."""
        weights = self.weights[step]
        assert weights is not None, f"step {step} computes both calls"
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
    if not isinstance(found, Mapping) or content.get("conditional") not in (FIRST, SECOND):
        raise PlanError(
            f'{origin}: "guidance" needs "conditional", which is "first" or "second", and '
            f'"weights" by step; found {content!r}.'
        )
    if cut != "output":
        raise PlanError(
            f'{origin}: guidance is left out of whole calls, so "cut" must be "output"; found '
            f"{cut!r}."
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
    plan = GuidancePlan(content["conditional"], tuple(weights))
    for step in plan.steps:
        have, needed = len(plan.sources(step, entries)), len(weights[step] or ())
        if have < needed:
            raise PlanError(
                f"{origin}: guidance at step {step} combines {needed} computed differences, but "
                f"only {have} steps before it compute both calls."
            )
    return plan


def guidance_to_json(plan: GuidancePlan) -> dict[str, Any]:
    """What a plan file says of guidance."""
    weights = {str(step): list(plan.weights[step] or ()) for step in plan.steps}
    return {"conditional": plan.conditional, "weights": weights}
