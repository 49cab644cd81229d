"""Decisions: a plan applied to a schedule. They also say which outputs to cache, and how long.

If the number of steps is known, the whole table is made before the first step. Then an output is
cached only if a later step reuses it, and freed after its last use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pab_compile.passes.sites.site import Site

from .plan import COMPUTE, MAX_ORDER, Entry, Plan, Weights, order_of
from .schedule import Moment, Schedule
from .step_plan import StepPlan


@dataclass(frozen=True)
class Decision:
    """What one site does at one step.

    Attributes:
        entry: ``COMPUTE`` or the order of the reuse.
        weights: of the outputs of ``sources``; None for the polynomial through them.
        source: for a reuse, the step at which the reused output must have been computed.
        sources: for a reuse, the steps of all outputs that the plan names, the oldest first. The
            last one is ``source``. At most one more than the order.
        history: number of outputs that stay cached after this step; 0 frees the cache entry. None
            if the later steps are unknown. Then as many stay as the plan can need.
    """

    entry: int
    source: int | None = None
    history: int | None = None
    sources: tuple[int, ...] = ()
    weights: Weights | None = None

    @property
    def reuses(self) -> bool:
        """Whether the site reuses instead of computing."""
        return self.entry != COMPUTE


class Decisions:
    """Entries of every site at every step of one generation, in order of the sites.

    Args:
        plan: the plan. It is asked once per site and step.
        sites: the sites that have a branch.
        schedule: what is known of the steps.
        first_timestep: timestep value of the first step.
    """

    def __init__(
        self, plan: Plan, sites: Sequence[Site], schedule: Schedule, first_timestep: float
    ) -> None:
        self._plan = plan
        self._sites = sites
        self._schedule = schedule
        self._first_timestep = first_timestep
        self._computed: dict[int, list[tuple[int, ...]]] = {}
        self._decided: dict[int, tuple[Decision, ...]] = {}
        # A first guess of the schedule may not fit. Then outputs are cached as if it were unknown.
        is_misfit = isinstance(plan, StepPlan) and plan.misfit(schedule) != ""
        if schedule.num_steps is not None and _timesteps_known(schedule) and not is_misfit:
            self._decided = self._table(schedule.num_steps)
        self._is_ahead = bool(self._decided)

    def at(self, step: int, timestep: float | None) -> tuple[Decision, ...]:
        """The decisions of all sites at a step. They never change."""
        if step not in self._decided:
            before = self._computed.get(step - 1, [()] * len(self._sites))
            decided = [
                _decision(entry, computed)
                for entry, computed in zip(self._entries(step, timestep), before, strict=True)
            ]
            self._computed[step] = [
                computed if decision.reuses else (*computed[-MAX_ORDER:], step)
                for decision, computed in zip(decided, before, strict=True)
            ]
            self._decided[step] = tuple(decided)
        return self._decided[step]

    @property
    def is_ahead(self) -> bool:
        """Whether the decisions of all steps were made before the first one."""
        return self._is_ahead

    def digest(self) -> str:
        """Short text that differs if the decisions that were made so far differ."""
        rows = [
            (step, [(each.entry, each.source, each.weights) for each in decided])
            for step, decided in sorted(self._decided.items())
        ]
        return hashlib.sha256(repr(rows).encode()).hexdigest()[:8]

    def _entries(self, step: int, timestep: float | None) -> list[Entry]:
        moment = Moment(step, timestep, self._first_timestep, self._schedule)
        return [self._plan.entry(site, moment) for site in self._sites]

    def _table(self, num_steps: int) -> dict[int, tuple[Decision, ...]]:
        timesteps = self._schedule.timesteps or (None,) * num_steps
        entries = [self._entries(step, timesteps[step]) for step in range(num_steps)]
        left_out = self._plan.guidance if isinstance(self._plan, StepPlan) else None
        until = left_out.steps[-1] if left_out is not None and left_out.steps else -1
        columns = [_column([step[i] for step in entries], until) for i in range(len(self._sites))]
        return {step: tuple(column[step] for column in columns) for step in range(num_steps)}


def _timesteps_known(schedule: Schedule) -> bool:
    return schedule.timesteps is None or len(schedule.timesteps) == schedule.num_steps


def _decision(entry: Entry, computed: tuple[int, ...]) -> Decision:
    """The decision for an entry.

    Args:
        entry: what the plan says.
        computed: the steps before that computed. Without one, there is nothing to reuse. Weights
            need as many as they are.
    """
    order, weights = order_of(entry), entry if isinstance(entry, tuple) else None
    if not computed:
        return Decision(COMPUTE)
    if order == COMPUTE or (weights is not None and len(computed) < len(weights)):
        return Decision(COMPUTE, computed[-1])
    return Decision(order, computed[-1], sources=computed[-order - 1 :], weights=weights)


def _column(entries: Sequence[Entry], until: int = -1) -> list[Decision]:
    """Decisions of one site over a whole generation.

    Args:
        entries: one per step.
        until: up to this step, what is computed stays at least until the other call of the step.
    """
    decided: list[Decision] = []
    computed: tuple[int, ...] = ()
    for step, entry in enumerate(entries):
        decided.append(_decision(entry, computed))
        if not decided[-1].reuses:
            computed = (*computed[-MAX_ORDER:], step)
    needed = 0
    for step in range(len(decided) - 1, -1, -1):
        is_read = step <= until and not decided[step].reuses
        decided[step] = decision = replace(decided[step], history=max(needed, int(is_read)))
        needed = max(needed, decision.entry + 1) if decision.reuses else max(needed - 1, 0)
    return decided
