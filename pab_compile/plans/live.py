"""Live plans: a plan that can be exchanged while the compiled model stays.

A generation takes over an exchanged plan at its next step. Threads and tasks may have plans of
their own.
"""

from __future__ import annotations

import contextvars
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .form import Form
from .plan import Plan, RangePlan
from .schedule import Schedule

NOTHING = RangePlan({}, (0.0, 1.0), {})
"""The plan that reuses nothing."""


@dataclass(frozen=True)
class Choice:
    """A plan with what it needs of the compiled model.

    Attributes:
        name: what the user calls it, for messages.
        plan: the plan.
        form: how a model is compiled for it.
        predict_in: the option ``predict_in``.
    """

    name: str
    plan: Plan
    form: Form
    predict_in: str = "step"

    def described(self) -> dict[str, str]:
        """Its name, and the options of the backend that say the same."""
        plan, found = self.plan, {"plan": self.name}
        if isinstance(plan, RangePlan):
            found |= {"ranges": repr(dict(plan.ranges)), "window": repr(plan.window)}
            found |= {"predict": repr(dict(plan.predict))} if plan.predict else {}
        found |= {"cut": repr(self.form.cut), "coalesce": repr(self.form.coalesce)}
        return found


_used: contextvars.ContextVar[Mapping[int, Choice] | None] = contextvars.ContextVar(
    "used", default=None
)


class LivePlan:
    """The plan of a compiled model, to be exchanged at any time.

    Args:
        choice: the first plan.
        rows: gives rows of numbers one of which may be the schedule, such as the timesteps of a
            scheduler.
    """

    def __init__(self, choice: Choice, rows: Callable[[], Sequence[Any]] = lambda: ()) -> None:
        self._choice = choice
        self._said: set[str] = set()
        self.rows = rows

    def current(self) -> Choice:
        """The plan of the running code: that of the innermost ``use``, else the common one."""
        return (_used.get() or {}).get(id(self), self._choice)

    def set(self, choice: Choice) -> None:
        """Exchange the common plan."""
        self._choice = choice

    @contextmanager
    def use(self, choice: Choice) -> Iterator[None]:
        """Exchange the plan inside a block, for its thread or task only."""
        token = _used.set({**(_used.get() or {}), id(self): choice})
        try:
            yield
        finally:
            _used.reset(token)

    def off(self, exact: bool = False) -> Choice:
        """The choice to reuse nothing.

        Args:
            exact: run without cuts, as stock ``torch.compile`` does. This compiles the graph once
                more. Otherwise the form stays, so nothing is compiled.
        """
        form = self.current().form
        return Choice("off", NOTHING, form.uncut() if exact else form)

    def warn_of_few(self, choice: Choice, schedule: Schedule) -> None:
        """Warn, once per plan, of a generation with too few steps for it."""
        plan, num_steps = choice.plan, schedule.num_steps
        fewest = plan.min_steps if isinstance(plan, RangePlan) else 0
        if num_steps is None or num_steps >= fewest or choice.name in self._said:
            return
        self._said.add(choice.name)
        warnings.warn(
            f"pab: {choice.name!r} reuses nothing in a generation of {num_steps} steps. It reuses "
            f"from {fewest} steps on; with fewer, reuse saves little and costs much quality.",
            stacklevel=2,
        )
