"""Step plans: rows of weights, their files, and what is decided with them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pab_compile.errors import PlanError
from pab_compile.passes.sites.site import Site
from pab_compile.plans.decisions import Decision, Decisions
from pab_compile.plans.form import ALL, Form
from pab_compile.plans.plan import COMPUTE
from pab_compile.plans.plan_file import load_plan, plan_from_json
from pab_compile.plans.schedule import Moment, Schedule
from pab_compile.plans.step_plan import StepPlan, step_plan_to_json
from pab_compile.plans.tuned_model import TunedModel
from pab_compile.runtime.cache_entry import CacheEntry

SITE = Site("a", "spatial", "sdpa", "", (), (), (), (), 0, 0, "")
TIMESTEPS = [1000.0, 750.0, 500.0, 250.0]


def content(**changes: Any) -> dict[str, Any]:
    """A plan file's content, with some of it replaced."""
    right = {
        "format": "pab_compile.plan/2",
        "num_steps": 4,
        "cut": "output",
        "timesteps": TIMESTEPS,
        "entries": ["C", "C", [-0.9, 1.9], 0],
    }
    return right | changes


def read(**changes: Any) -> StepPlan:
    plan = plan_from_json(content(**changes), "The plan file 'p.json'")
    assert isinstance(plan, StepPlan)
    return plan


def test_a_file_is_read_and_written_alike() -> None:
    plan = read()
    assert plan.entries == (COMPUTE, COMPUTE, (-0.9, 1.9), 0)
    assert (plan.num_computed, plan.max_order(SITE), plan.may_reuse(SITE)) == (2, 1, True)
    assert plan_from_json(step_plan_to_json(plan), "The plan file 'p.json'") == plan


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"entries": ["C", "C", 0]}, '"entries" needs 4 entries, found 3 of them'),
        ({"entries": "CCCC"}, "found 'CCCC'"),
        ({"num_steps": None}, "needs None entries"),
        ({"entries": ["C", "C", [], 0]}, "step 2: an entry is compute"),
        ({"entries": ["C", "C", [1, 2, 3, 4], 0]}, "found [1, 2, 3, 4]"),
        ({"entries": ["C", "C", [float("nan"), 1.0], 0]}, "found [nan, 1.0]"),
        ({"entries": ["C", "C", [True, 1.0], 0]}, "found [True, 1.0]"),
        ({"entries": ["C", "C", "R", 0]}, "found 'R'"),
        ({"entries": ["C", [1.0, 0.0], 0, 0]}, "step 1 combines 2 computed outputs, but only 1"),
        ({"entries": [0, "C", "C", "C"]}, "step 0 combines 1 computed outputs, but only 0"),
        ({"cut": "half"}, "cut='half'"),
        ({"coalesce": 1}, "coalesce=1"),
        ({"timesteps": [1, 2]}, '"timesteps" needs 4 finite numbers'),
        ({"timesteps": [1, 2, 3, "4"]}, '"timesteps" needs 4 finite numbers'),
    ],
    ids=str,
)
def test_content_that_is_no_plan_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError) as caught:
        read(**changes)
    assert words in str(caught.value)
    assert str(caught.value).startswith("The plan file 'p.json'")


def test_weights_need_format_2() -> None:
    old = {"format": "pab_compile.plan/1", "num_steps": 2, "sites": {"a": ["C", [1.0]]}}
    with pytest.raises(PlanError, match=r"weights need format 'pab_compile\.plan/2'"):
        plan_from_json(old, "p")


def entry_at(
    plan: StepPlan, step: int, timesteps: list[float] | None, num_steps: int | None
) -> Any:
    schedule = Schedule(num_steps, tuple(timesteps) if timesteps else None)
    return plan.entry(SITE, Moment(step, None, 1000.0, schedule))


def test_only_the_schedule_that_it_is_made_for_is_taken() -> None:
    plan = read()
    assert entry_at(plan, 2, TIMESTEPS, 4) == (-0.9, 1.9)
    assert entry_at(plan, 2, [1000.0, 749.6, 500.2, 250.0], 4) == (-0.9, 1.9), "cut or rounded"
    assert entry_at(plan, 2, None, 4) == (-0.9, 1.9), "the timesteps are unknown"
    assert entry_at(plan, 2, None, None) == COMPUTE, "the steps are unknown"
    assert entry_at(plan, 2, None, 5) == COMPUTE
    assert entry_at(plan, 2, [1000.0, 900.0, 500.0, 250.0], 4) == COMPUTE
    assert "for 4 steps, and the generation has 5" in plan.misfit(Schedule(5))
    other = Schedule(4, (1000.0, 900.0, 500.0, 250.0))
    assert "timestep 750 at step 1, and the generation has 900" in plan.misfit(other)


def test_outputs_stay_while_a_guess_of_the_schedule_does_not_fit() -> None:
    decided = Decisions(read(), [SITE], Schedule(4, (1000.0, 900.0, 500.0, 250.0)), 1000.0)
    assert [decided.at(step, None)[0].history for step in range(4)] == [None] * 4
    assert not any(decided.at(step, None)[0].reuses for step in range(4))


def test_decisions_name_as_many_outputs_as_there_are_weights() -> None:
    decided = Decisions(read(), [SITE], Schedule(4, tuple(TIMESTEPS)), 1000.0)
    rows = [decided.at(step, None)[0] for step in range(4)]
    assert rows[2] == Decision(1, 1, 1, (0, 1), (-0.9, 1.9))
    assert rows[3] == Decision(0, 1, 0, (1,))
    assert [row.history for row in rows] == [1, 2, 1, 0]


def test_weights_without_enough_outputs_compute() -> None:
    plan = StepPlan((COMPUTE, (0.5, 0.5), COMPUTE, (0.5, 0.5)), "p", "output")
    decided = Decisions(plan, [SITE], Schedule(4), 1000.0)
    assert [decided.at(step, None)[0].reuses for step in range(4)] == [False, False, False, True]


def test_all_sites_have_one_form() -> None:
    assert Form.of(read(cut="branch"), "branch", True).together == ALL


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weighted_sum_is_rounded_once(dtype: torch.dtype) -> None:
    entry = CacheEntry()
    outputs = [torch.randn(3, 4, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    for step, output in enumerate(outputs):
        entry.store(step, (output.to(dtype).t(), torch.tensor([step])), 3)
    loaded, number = entry.load(5, 2, weights=(0.3, -1.2, 1.7))
    exact = sum(
        w * output.to(dtype).double() for w, output in zip((0.3, -1.2, 1.7), outputs, strict=True)
    )
    assert isinstance(exact, torch.Tensor)
    rounding = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(loaded.double(), exact.t(), atol=1e-6, rtol=rounding)
    assert loaded.stride() == outputs[0].t().stride()
    assert int(number) == 2, "the newest of what is no floating point number"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


def whole() -> dict[str, Any]:
    """All that a file can say."""
    model = TunedModel("Model", "0123", 5, (0.5, None), ()).to_json()
    return content(entries=["C", "C", "C", 0], guidance=BATCH, coalesce=False, model=model)


@given(
    st.sampled_from(["coalesce", "cut", "entries", "guidance", "model", "timesteps"]), json_values
)
def test_a_file_with_anything_in_it_is_a_plan_or_an_error(name: str, value: Any) -> None:
    try:
        plan = plan_from_json({**whole(), name: value}, "p")
    except PlanError as error:
        assert str(error).startswith("p")
    else:
        assert plan.num_steps == 4


@given(st.integers(0, 500), st.binary(max_size=3))
def test_a_damaged_file_is_a_plan_or_an_error(place: int, damage: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.json"
        path.write_bytes(json.dumps(whole()).encode()[:place] + damage)
        try:
            load_plan(path)
        except PlanError:
            return


GUIDANCE = {"prompts": "calls", "weights": {"2": [-0.5, 1.5]}}
BATCH = {**GUIDANCE, "prompts": "batch", "computes": "second"}


@pytest.mark.parametrize("guidance", [GUIDANCE, BATCH], ids=["calls", "batch"])
def test_guidance_is_read_and_written_alike(guidance: dict[str, Any]) -> None:
    plan = read(entries=["C", "C", "C", 0], guidance=guidance)
    assert plan_from_json(step_plan_to_json(plan), "The plan file 'p.json'") == plan
    assert plan.cost == 2.5
    assert plan.guidance_at(2, Schedule(4)) == (-0.5, 1.5)
    assert plan.guidance_at(1, Schedule(4)) is None
    assert plan.guidance_at(2, Schedule(5)) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"guidance": 1}, '"guidance" needs "prompts"'),
        ({"guidance": {**GUIDANCE, "prompts": "none"}}, "'none'"),
        ({"guidance": {**GUIDANCE, "computes": "second"}}, "Of two calls it is always the first"),
        ({"guidance": {**GUIDANCE, "prompts": "batch"}}, '"computes" of the guidance is the half'),
        ({"guidance": BATCH, "cut": "attention"}, '"cut" must be "output"; found \'attention\''),
        ({"guidance": {**GUIDANCE, "weights": {"3": [1.0]}}}, "left out at step '3'"),
        ({"guidance": {**GUIDANCE, "weights": {"1.0": [1.0]}}}, "left out at step '1.0'"),
        ({"guidance": {**GUIDANCE, "weights": {"2": 0}}}, "guidance at step 2 needs weights"),
        ({"guidance": {**GUIDANCE, "weights": {"2": [1e999]}}}, "found [inf]"),
        ({"guidance": {**GUIDANCE, "weights": {"0": [1.0]}}}, "only 0 steps before it"),
    ],
    ids=str,
)
def test_guidance_that_is_no_plan_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError) as caught:
        read(**{"entries": ["C", "C", "C", "C" if "3" in str(changes) else 0], **changes})
    assert words in str(caught.value)
