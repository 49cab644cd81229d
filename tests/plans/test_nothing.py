"""Why a plan reuses nothing: the true cause, in words."""

from __future__ import annotations

import pytest

from pab_compile.plans.nothing import why_nothing
from pab_compile.plans.plan import CallablePlan, Plan, RangePlan
from pab_compile.plans.schedule import Schedule

LONG = Schedule(20, tuple(1.0 - step / 20 for step in range(20)))


@pytest.mark.parametrize(
    ("plan", "schedule", "words"),
    [
        (RangePlan({}, (0.0, 1.0), {}), LONG, "reuses no kind"),
        (RangePlan({"full": 1}, (0.0, 1.0), {}), LONG, "reuses no kind"),
        (
            RangePlan({"temporal": 4}, (0.0, 1.0), {}),
            LONG,
            "reuses temporal, and the sites of this model are cross, full",
        ),
        (RangePlan({"full": 2}, (100, 800), {}), LONG, "from 1 to 0.05 here"),
        (RangePlan({"full": 2}, (100, 800), {}), Schedule(20), "are not known here"),
        (RangePlan({"full": 2}, (0.4, 0.45), {}), Schedule(2), "no step lies in the window"),
        (RangePlan({"full": 4}, (0.0, 1.0), {}), Schedule(1), "few steps"),
        (CallablePlan(lambda *_: None), LONG, "each of the 20 steps"),
    ],
)
def test_the_cause_is_named(plan: Plan, schedule: Schedule, words: str) -> None:
    found = why_nothing(plan, {"full", "cross"}, schedule)
    assert found.startswith("nothing was reused: ")
    assert words in found
