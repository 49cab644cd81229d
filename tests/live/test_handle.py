"""The handle: what it takes, what it refuses, and what it leaves behind."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch

import pab_compile
from helpers.eager_code import NUM_STEPS, Dit, calls, make
from helpers.switching import Compilations
from pab_compile.errors import OptionError, PabError, PlanError, UnsupportedModelError
from pab_compile.plans.levels import LEVELS, MIN_STEPS
from pab_compile.plans.plan_file import plan_to_json
from pab_compile.plans.presets import PRESETS

EVERYWHERE = {"window": (0.0, 1.0)}


@pytest.fixture
def model() -> Dit:
    return make("plain")


def run(model: torch.nn.Module) -> list[torch.Tensor]:
    """One generation, in a function of its own as a sampler is."""
    with torch.no_grad():
        return [model(*each) for each in calls()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def site_names(model: torch.nn.Module) -> list[str]:
    found = pab_compile.explain(model, *next(iter(calls())))
    return [site.name for site in found.sites]


def test_a_handle_says_what_it_is_and_what_holds(model: Dit) -> None:
    handle = pab_compile.enable(model, inner="eager")
    assert handle.modules == ("model",)
    assert handle.plan == "balanced"
    assert repr(handle) == "<pab_compile.Handle of model: plan 'balanced'>"
    handle.set("pab246")
    with handle.use("ultra"):
        assert handle.plan == "ultra"
        with handle.disabled():
            assert handle.plan == "off"
        assert handle.plan == "ultra"
    assert handle.plan == "pab246"
    handle.disable()
    assert repr(handle) == "<pab_compile.Handle of model: disabled>"


def test_each_way_to_name_a_plan(model: Dit, tmp_path: Path, monkeypatch: Any) -> None:
    eager = run(model)
    rows = {name: [-1, 0, 0, -1, 0, 0] for name in site_names(model)}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan_to_json(rows, NUM_STEPS)))
    compilations = Compilations(monkeypatch)
    handle = pab_compile.enable(model, "off", inner="eager")
    assert equal(run(model), eager)
    rule = {"ranges": {"full": 3, "cross": 3, "mlp": 3}, **EVERYWHERE}
    found = []
    for plan in (rule, path, str(path), lambda site, step, *_: 0 if step % 3 else None):
        handle.set(plan)
        found.append(run(model))
    assert all(equal(found[0], other) for other in found[1:])
    assert not equal(found[0], eager)
    assert compilations.count == 2
    for plan in (None, "off", {"ranges": {}}, {"ranges": {"full": 1}}):
        handle.set(plan)
        assert equal(run(model), eager)
    assert compilations.count == 2


@pytest.mark.parametrize(
    ("plan", "error", "words"),
    [
        ("balansed", OptionError, r"Did you mean 'balanced'\?"),
        ("missing.json", OptionError, "no level, no preset and no plan file"),
        (Path("missing.json"), PlanError, "does not exist"),
        ({"range": {"full": 2}}, OptionError, r"no option 'range'.*Did you mean 'ranges'\?"),
        ({"ranges": {"ful": 2}}, OptionError, r"unknown kind 'ful'"),
        ({"ranges": {"full": 0}}, OptionError, "a range is an integer of at least 1"),
        ({"inner": "eager"}, OptionError, "no option 'inner'"),
        (3, OptionError, "A plan is the name of a level"),
    ],
)
def test_what_is_no_plan_is_refused_at_once_and_changes_nothing(
    model: Dit, plan: Any, error: type[Exception], words: str
) -> None:
    handle = pab_compile.enable(model, "fast", inner="eager")
    with pytest.raises(error, match=words):
        handle.set(plan)
    with pytest.raises(error, match=words), handle.use(plan):
        pass
    assert handle.plan == "fast"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"level": "fastest"}, "is no level"),
        ({"level": 3}, "level is the name"),
        ({"level": "fast", "ranges": {"full": 2}}, "were given together"),
        ({"level": "fast", "window": (0.0, 1.0)}, "were given together"),
        ({"iner": "eager"}, r"Did you mean 'inner'\?"),
        ({"ranges": {"ful": 2}}, "unknown kind"),
        ({"cut": "output", "level": "pab246"}, "kind 'output' only"),
        ({"sequence_parallel": 2}, "at the same step"),
        ({"options": "{"}, "cannot be read as JSON"),
    ],
)
def test_options_are_checked_at_once(model: Dit, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        pab_compile.enable(model, **options)
    assert model._compiled_call_impl is None


def test_a_plan_of_another_model_is_refused_at_the_next_call(model: Dit, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan_to_json({"strange": [-1, 0]}, 2)))
    handle = pab_compile.enable(model, "off", inner="eager")
    eager = run(model)
    handle.set(path)
    with pytest.raises(PlanError, match="first 'strange'"):
        run(model)
    handle.off()
    assert equal(run(model), eager)


def test_disable_leaves_no_trace(model: Dit) -> None:
    before, eager = dict(vars(model)), run(model)
    handle = pab_compile.enable(model, inner="eager", ranges={"full": 2}, window=(0.0, 1.0))
    assert not equal(run(model), eager)
    handle.disable()
    handle.disable()
    assert vars(model) == before
    assert equal(run(model), eager)
    for call in (lambda: handle.set("fast"), handle.off, handle.stats, handle.explain):
        with pytest.raises(PabError, match="was disabled"):
            call()
    with pytest.raises(PabError, match="was disabled"), handle.use("fast"):
        pass
    again = pab_compile.enable(model, "off", inner="eager")
    assert equal(run(model), eager)
    again.disable()


def test_what_is_compiled_already_is_refused(model: Dit) -> None:
    with pytest.raises(UnsupportedModelError, match=r"result of torch\.compile already"):
        pab_compile.enable(torch.compile(model, backend="eager"))
    handle = pab_compile.enable(model)
    with pytest.raises(UnsupportedModelError, match="is compiled already, by enable"):
        pab_compile.enable(model)
    handle.disable()
    pab_compile.enable(model)


def test_stats_and_explain_are_by_role(model: Dit) -> None:
    handle = pab_compile.enable(model, inner="eager", ranges={"full": 2}, window=(0.0, 1.0))
    with pytest.raises(PabError, match="has not completed a step"):
        handle.stats()
    before = handle.explain(*next(iter(calls())))["model"]
    run(model)
    assert handle.stats()["model"].reused["full"] > 0
    assert handle.explain()["model"].sites == before.sites
    assert {site.kind: site.range for site in before.sites} == {"full": 2, "cross": 1}


def test_options_come_as_an_object_as_text_or_as_a_file(
    model: Dit, tmp_path: Path, runs_all: bool
) -> None:
    rule: dict[str, Any] = {"ranges": {"full": 2}, "window": [0.0, 1.0], "inner": "eager"}
    path = tmp_path / "options.json"
    path.write_text(json.dumps(rule))
    given = (json.dumps(rule), pab_compile.Options(**rule))
    others = (rule, path) if runs_all else (path,)
    found = []
    for options in (*given, *others):
        handle = pab_compile.enable(model, options=options)
        found.append(run(model))
        assert handle.stats()["model"].reused["full"] > 0
        handle.disable()
    for options in given if runs_all else given[1:]:
        compiled = torch.compile(model, backend="pab", options=options)  # type: ignore[arg-type]
        found.append(run(compiled))  # type: ignore[arg-type]
    assert all(equal(found[0], other) for other in found[1:])
    named = pab_compile.enable(model, options='{"level": "ultra", "inner": "eager"}', inner="eager")
    assert named.plan == "ultra"


# Levels


def test_levels_are_presets_from_the_best_quality_on() -> None:
    every = [set(PRESETS[preset].ranges.values()) for preset in LEVELS.values()]
    assert every == [{2}, {3}, {4}, {5}]


def short(model: torch.nn.Module, num_steps: int) -> list[torch.Tensor]:
    table = torch.linspace(1000, 100, num_steps)
    inputs = list(calls()) * 2
    with torch.no_grad():
        return [
            model(inputs[step][0], table[step : step + 1].expand(2), inputs[step][2])
            for step in range(num_steps)
        ]


def test_a_level_reuses_nothing_in_few_steps_and_says_so_once(model: Dit) -> None:
    eager = {num: short(model, num) for num in (MIN_STEPS - 1, MIN_STEPS)}
    handle = pab_compile.enable(model, "quality", inner="eager")
    for level in LEVELS:
        handle.set(level)
        words = f"'{level}' reuses nothing in a generation of 7 steps. It reuses from 8 steps on"
        with pytest.warns(UserWarning, match=words):
            assert equal(short(model, MIN_STEPS - 1), eager[MIN_STEPS - 1])
        (note,) = handle.stats()["model"].notes
        assert "has 7 steps, and the plan reuses from 8 steps on" in note
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert equal(short(model, MIN_STEPS - 1), eager[MIN_STEPS - 1])
            assert not equal(short(model, MIN_STEPS), eager[MIN_STEPS])
        assert handle.stats()["model"].notes == ()
    handle.set("linear3")  # a preset is a rule, whatever the number of steps
    assert not equal(short(model, MIN_STEPS - 1), eager[MIN_STEPS - 1])


@pytest.mark.sample("True")
@pytest.mark.parametrize("enabled_first", [False, True])
def test_offloading_the_whole_model_leaves_reuse_as_it_is(model: Dit, enabled_first: bool) -> None:
    rule: dict[str, Any] = {"ranges": {"full": 2}, "window": (0.0, 1.0), "inner": "eager"}
    other = make("plain")
    pab_compile.enable(other, options=rule)
    expected = run(other)
    if not enabled_first:
        accelerate.cpu_offload_with_hook(model, torch.device("cpu"))
    handle = pab_compile.enable(model, options=rule)
    if enabled_first:
        accelerate.cpu_offload_with_hook(model, torch.device("cpu"))
    assert equal(run(model), expected)
    assert handle.stats()["model"].reused["full"] == NUM_STEPS // 2


def test_a_budget_holds_for_every_plan(model: Dit) -> None:
    eager = run(model)
    handle = pab_compile.enable(model, "pab246", inner="eager", cut="gated")
    run(model)
    needed = handle.stats()["model"].peak_cache_bytes
    handle.disable()
    budget = needed * 2 // 3
    handle = pab_compile.enable(model, "pab246", inner="eager", cut="gated", cache_budget=budget)
    for plan in ("pab246", "linear2", "pab357"):
        handle.set(plan)
        run(model)
        peak = handle.stats()["model"].peak_cache_bytes
        assert (peak > 0) == (plan != "linear2")  # one sum, of which it keeps two outputs
        assert peak <= budget
    handle.disable()
    handle = pab_compile.enable(model, "linear2", inner="eager", cache_budget=1)
    assert equal(run(model), eager)
