"""A whole pipeline of diffusers with a tuned plan gives what was rehearsed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import pab_compile
from pab_compile.plans.step_plan import StepPlan, step_plan_to_json
from pab_compile.tuning.pairs import Pairing
from pab_compile.tuning.rehearsal import Rehearsal
from pab_compile.tuning.row import Row, lengths_of

from .case import Case
from .catalogue import CASES

NUM_STEPS = 6
COMPUTED = [0, 1, 3]
NO_HALVES = ("Mochi",)  # it goes through the prompts of the batch one by one


def can_be_tuned(case: Case) -> bool:
    """Not if the schedule is gone through twice, an input steps, or tokens have their timesteps."""
    return case.generations == 1 and not case.stepping and case.name != "Wan 2.2, image to video"


def each_case(test: Callable[..., None]) -> Callable[..., None]:
    """Runs a test for every pipeline of the suite that can be tuned."""
    cases = [case for case in CASES.values() if case.in_suite and can_be_tuned(case)]
    for mark in (
        pytest.mark.filterwarnings("ignore:In CPU autocast"),
        pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
        pytest.mark.parametrize("case", cases, ids=lambda case: case.name),
    ):
        test = mark(test)
    return test


@pytest.mark.sample("Wan")
@each_case
def test_a_pipeline_runs_the_weights_that_were_rehearsed(case: Case, tmp_path: Path) -> None:
    pipe = case.build()
    rehearsal = Rehearsal(lambda seed, n: case.generate(pipe, n, seed), pipe.transformer)
    with torch.no_grad(), case.dit.switched():
        whole = rehearsal.run(5, NUM_STEPS)
        row = Row.of(lengths_of(whole.timesteps), COMPUTED).changed(2, [0.1, -0.2, 0.3])
        expected = rehearsal.run(5, NUM_STEPS, row.entries())
        plan = StepPlan(row.entries(), "the plan", "output", tuple(whole.timesteps))
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(step_plan_to_json(plan)))
        handle = pab_compile.enable(pipe, plan=path, inner="eager", **case.dit.options)
        case.generate(pipe, NUM_STEPS)  # graphs of several prompt lengths are compiled
        actual = case.generate(pipe, NUM_STEPS)
        (seen,) = handle.stats().values()
    assert expected.result is not None
    torch.testing.assert_close(actual.float(), expected.result, atol=1e-5, rtol=1e-5)
    assert seen.reused == {"output": case.calls * (NUM_STEPS - len(COMPUTED))}


@pytest.mark.long
@each_case
def test_a_pipeline_leaves_guidance_out_as_it_was_rehearsed(case: Case, tmp_path: Path) -> None:
    pipe = case.build()
    rehearsal = Rehearsal(lambda seed, n: case.generate(pipe, n, seed), pipe.transformer)
    with torch.no_grad(), case.dit.switched():
        whole = rehearsal.run(5, NUM_STEPS)
        if not isinstance(pairing := rehearsal.pairs.pairing(), Pairing):
            pytest.skip(pairing)
        row = Row.of(lengths_of(whole.timesteps), COMPUTED, COMPUTED[2:])
        guidance = pairing.plan(row)
        left_out = None if case.name in NO_HALVES else guidance
        expected = rehearsal.run(5, NUM_STEPS, row.entries(), guidance=left_out)
        times = tuple(whole.timesteps)
        plan = StepPlan(row.entries(), "the plan", "output", times, guidance=guidance)
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(step_plan_to_json(plan)))
        handle = pab_compile.enable(pipe, plan=path, inner="eager", **case.dit.options)
        case.generate(pipe, NUM_STEPS)
        actual = case.generate(pipe, NUM_STEPS)
        (seen,) = handle.stats().values()
    assert expected.result is not None
    torch.testing.assert_close(actual.float(), expected.result, atol=1e-4, rtol=1e-4)
    if case.name in NO_HALVES:
        assert "half of the batch cannot be computed alone" in seen.notes[0]
        assert seen.timeline.strips()[0] == "CCpCpp"
    else:
        assert seen.notes == ()
        assert seen.timeline.strips()[0] == "CCp~pp"
