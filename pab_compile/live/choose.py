"""Choosing: from what a user calls a plan to a plan with its form."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pab_compile.calibration.calibrate import Calibration
from pab_compile.errors import OptionError
from pab_compile.options import parse_options
from pab_compile.passes.sites.site import OUTPUT
from pab_compile.plans.form import Form
from pab_compile.plans.hints import near_miss
from pab_compile.plans.levels import DEFAULT, LEVELS, MIN_STEPS, OFF
from pab_compile.plans.live import NOTHING, Choice
from pab_compile.plans.plan import RangePlan
from pab_compile.plans.plan_file import plan_from_json
from pab_compile.plans.presets import PRESETS
from pab_compile.plans.step_plan import StepPlan

RULE = ("ranges", "window", "predict", "plan")
"""Options that say what is reused when."""
SHAPE = ("cut", "coalesce", "predict_in")
"""Options that a plan may bring with it."""


def choice_of(wanted: Any, given: Mapping[str, Any]) -> Choice:
    """A plan with its form.

    Args:
        wanted: the name of a level or a preset, ``"off"`` or None, the path of a plan file, a
            ``Tuned``, a ``Calibration``, a function, or a mapping of the options in ``RULE`` and
            ``SHAPE``.
        given: the other options of the handle. They replace those of a level or a preset.

    Raises:
        OptionError: it is none of these, or it does not go with the other options.
        PlanError: the plan file is malformed.
    """
    if wanted is None or (isinstance(wanted, str) and wanted == OFF):
        return replace(choice_of(DEFAULT, given), name=OFF, plan=NOTHING)
    if isinstance(wanted, Calibration):
        return _calibrated(wanted, given)
    if isinstance(plan := getattr(wanted, "plan", None), StepPlan):  # what tune returned
        return Choice("a tuned plan", plan, Form.of(plan, plan.cut, plan.coalesce))
    if isinstance(wanted, str) and wanted in LEVELS:
        level = _parsed(wanted, {"ranges": LEVELS[wanted]}, given)
        assert isinstance(level.plan, RangePlan)
        return replace(level, plan=replace(level.plan, min_steps=MIN_STEPS))
    if isinstance(wanted, str) and wanted in PRESETS:
        return _parsed(wanted, {"ranges": wanted}, given)
    if isinstance(wanted, (str, Path)):
        if isinstance(wanted, str) and not os.path.exists(wanted):
            raise OptionError(
                f"{wanted!r} is no level, no preset and no plan file."
                f"{near_miss(wanted, (*LEVELS, *PRESETS, OFF))}"
            )
        return _parsed(str(wanted), {"plan": wanted}, given)
    if isinstance(wanted, Mapping):
        for name in wanted:
            if name not in (*RULE, *SHAPE):
                hint = near_miss(name, (*RULE, *SHAPE))
                raise OptionError(f"A plan has no option {name!r}.{hint}")
        return _parsed(_rule_name(wanted), wanted, given)
    if callable(wanted):
        return _parsed(getattr(wanted, "__name__", "a function"), {"plan": wanted}, given)
    raise OptionError(
        f"A plan is the name of a level or a preset, the path of a plan file, a Calibration, a "
        f"function, or a mapping such as {{'ranges': {{'spatial': 2}}}}; got {wanted!r}."
    )


def _parsed(name: str, rule: Mapping[str, Any], given: Mapping[str, Any]) -> Choice:
    options = parse_options({**given, **rule})
    plan = options.make_plan()
    if isinstance(plan, RangePlan) and not any(every > 1 for every in plan.ranges.values()):
        return replace(choice_of(OFF, given), name=name)
    form = Form.of(plan, options.cut, options.coalesce)
    return Choice(name, plan, form, options.predict_in)


def _calibrated(found: Calibration, given: Mapping[str, Any]) -> Choice:
    """The choice of a plan that was not written to a file."""
    needed = {"cut": found.cut, "coalesce": found.coalesce, "predict_in": found.predict_in}
    for option, value in needed.items():
        if given.get(option, value) != value:
            raise OptionError(
                f"{option}={given[option]!r}, but the plan was made with {value!r}. Leave the "
                "option out, or make a plan with it."
            )
    plan = plan_from_json(found.to_json(), "The calibration")
    form = Form.of(plan, found.cut, found.coalesce and found.cut != OUTPUT)
    return Choice("a calibration", plan, form, found.predict_in)


def _rule_name(rule: Mapping[str, Any]) -> str:
    """What a rule is called in messages."""
    return ", ".join(f"{name}={value!r}" for name, value in rule.items()) or "the default"
