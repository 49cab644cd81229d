"""Step plans: one row of entries that holds for all sites, made for one schedule.

``tune`` makes them. Their files have the format 2::

    {"format": "pab_compile.plan/2", "num_steps": 4, "cut": "output",
     "timesteps": [1000.0, 750.0, 500.0, 250.0],
     "entries": ["C", "C", [-0.9, 1.9], "C"]}

An entry is ``"C"`` (compute), an order of the reuse, or weights of the last computed outputs, the
oldest first. The weights fit one schedule only. With other timesteps every step computes. They fit
one model only: a file of ``tune`` says which one (``tuned_model``).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pab_compile.errors import PlanError
from pab_compile.passes.sites.site import CUTS, Site

from .guidance import GuidancePlan, guidance_from_json, guidance_to_json
from .plan import COMPUTE, Entry, Weights, checked_entry, order_of
from .schedule import Moment, Schedule
from .tuned_model import TunedModel, tuned_model_from_json

STEP_PLAN_FORMAT = "pab_compile.plan/2"
_PRECISION = 5e-3  # bfloat16 has 8 bits
_WHOLE = 1.0  # a timestep of 1000 may have been cut to a whole number
_RETUNE = "run pab_compile.tune with the schedule of this generation"


@dataclass(frozen=True)
class StepPlan:
    """Entries that hold for all sites.

    Attributes:
        entries: one per step.
        origin: where the plan came from, for messages.
        cut: the option ``cut``.
        timesteps: of the schedule that it is made for; None for any.
        coalesce: the option ``coalesce``.
        guidance: which steps compute one of two prompts only; None if none does.
        model: that it was tuned on; None for any.
    """

    entries: tuple[Entry, ...]
    origin: str
    cut: str
    timesteps: tuple[float, ...] | None = None
    coalesce: bool = False
    guidance: GuidancePlan | None = None
    model: TunedModel | None = field(default=None, repr=False)

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self.entries)

    @property
    def num_computed(self) -> int:
        """Number of steps that compute."""
        return sum(order_of(entry) == COMPUTE for entry in self.entries)

    @property
    def cost(self) -> float:
        """Number of steps that compute. A step that computes one of two prompts is half."""
        left_out = len(self.guidance.steps) if self.guidance is not None else 0
        return self.num_computed - left_out / 2

    def guidance_at(self, step: int, schedule: Schedule) -> Weights | None:
        """Weights of the guidance differences; None if the step computes both, or reuses."""
        if self.guidance is None or schedule.num_steps is None or self.misfit(schedule):
            return None
        return self.guidance.weights[step]

    def entry(self, site: Site, moment: Moment) -> Entry:
        """The entry of the step; ``COMPUTE`` if the generation has another schedule."""
        is_known = moment.schedule.num_steps is not None
        return (
            self.entries[moment.step] if is_known and not self.misfit(moment.schedule) else COMPUTE
        )

    def may_reuse(self, site: Site) -> bool:
        """Whether any step reuses."""
        return self.cost < self.num_steps

    def range_of(self, site: Site) -> None:
        """A row of entries has no range."""
        return None

    def max_order(self, site: Site) -> int:
        """One less than the most outputs that an entry needs."""
        return max(0, *map(order_of, self.entries))

    def pattern(self, site: Site) -> Hashable | None:
        """The entries."""
        return self.entries if self.may_reuse(site) else None

    def check(self, sites: Sequence[Site]) -> None:
        """Every graph fits."""

    def misfit(self, schedule: Schedule) -> str:
        """Why the plan does not fit a schedule; ``""`` if it does.

        A schedule may be a first guess, so this is no error.
        """
        if schedule.num_steps != self.num_steps:
            return (
                f"{self.origin} is made for {self.num_steps} steps, and the generation has "
                f"{schedule.num_steps}: {_RETUNE}"
            )
        if self.timesteps is None or schedule.timesteps is None:
            return ""
        pairs = zip(self.timesteps, schedule.timesteps, strict=True)
        slack = _WHOLE if max(self.timesteps) > 2 * _WHOLE else _PRECISION
        for step, (ours, theirs) in enumerate(pairs):
            if not math.isclose(ours, theirs, rel_tol=_PRECISION, abs_tol=slack):
                return (
                    f"{self.origin} is made for timestep {ours:g} at step {step}, and the "
                    f"generation has {theirs:g} there: {_RETUNE}"
                )
        return ""


def step_plan_from_json(content: Mapping[str, Any], origin: str) -> StepPlan:
    """Validate the content of a plan file of format 2.

    Raises:
        PlanError: it is malformed.
    """
    num_steps, listed = content.get("num_steps"), content.get("entries")
    if not isinstance(listed, list) or not listed or num_steps != len(listed):
        found = f"{len(listed)} of them" if isinstance(listed, list) else repr(listed)
        raise PlanError(f'{origin}: "entries" needs {num_steps!r} entries, found {found}.')
    entries = tuple(
        COMPUTE if entry == "C" else checked_entry(entry, f"{origin}, step {step}")
        for step, entry in enumerate(listed)
    )
    cut, coalesce = content.get("cut"), content.get("coalesce", False)
    if cut not in CUTS or not isinstance(coalesce, bool):
        raise PlanError(
            f'{origin}: "cut" is one of {", ".join(CUTS)} and "coalesce" is true or false; found '
            f"cut={cut!r}, coalesce={coalesce!r}."
        )
    _check_history(entries, origin)
    guidance = guidance_from_json(content.get("guidance"), entries, cut, origin)
    timesteps = _timesteps(content, len(entries), origin)
    model = tuned_model_from_json(content.get("model"), origin)
    return StepPlan(entries, origin, cut, timesteps, coalesce, guidance, model)


def step_plan_to_json(plan: StepPlan) -> dict[str, Any]:
    """The content of a plan file."""
    entries = [
        "C" if order_of(entry) == COMPUTE else list(entry) if isinstance(entry, tuple) else entry
        for entry in plan.entries
    ]
    content: dict[str, Any] = {"format": STEP_PLAN_FORMAT, "num_steps": plan.num_steps}
    content |= {"cut": plan.cut, "coalesce": plan.coalesce}
    if plan.timesteps is not None:
        content["timesteps"] = list(plan.timesteps)
    if plan.model is not None:
        content["model"] = plan.model.to_json()
    if plan.guidance is not None:
        content["guidance"] = guidance_to_json(plan.guidance)
    return {**content, "entries": entries}


def _check_history(entries: Sequence[Entry], origin: str) -> None:
    """Check that every weight has an output."""
    computed = 0
    for step, entry in enumerate(entries):
        needed = len(entry) if isinstance(entry, tuple) else min(order_of(entry) + 1, 1)
        if needed > computed:
            raise PlanError(
                f"{origin}: step {step} combines {needed} computed outputs, but only {computed} "
                "steps before it compute."
            )
        computed += order_of(entry) == COMPUTE


def _timesteps(content: Mapping[str, Any], num_steps: int, origin: str) -> tuple[float, ...] | None:
    found = content.get("timesteps")
    if found is None:
        return None
    is_row = isinstance(found, list) and len(found) == num_steps
    if not is_row or not all(type(t) in (int, float) and math.isfinite(t) for t in found):
        raise PlanError(f'{origin}: "timesteps" needs {num_steps} finite numbers, found {found!r}.')
    return tuple(map(float, found))
