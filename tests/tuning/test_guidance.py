"""Tune leaves guidance out: exact weights, the choice of steps, and the backend does the same."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pab_compile
from pab_compile.errors import CalibrationError
from pab_compile.plans.guidance import GuidancePlan
from pab_compile.plans.plan import COMPUTE
from pab_compile.plans.plan_file import load_plan, plan_text
from pab_compile.plans.step_plan import StepPlan, step_plan_to_json
from pab_compile.tuning.choice import halves_of
from pab_compile.tuning.rehearsal import Rehearsal
from pab_compile.tuning.row import Row
from pab_compile.tuning.score import Score
from pab_compile.tuning.tuned import Alternative, Tuned

NUM_STEPS = 12
STEPS, HALVES = [0, 1, 3, 5, 8], [3, 8]
SCALE = 5.0


class Guided(torch.nn.Module):
    """Its output is a line in the timestep that may bend, and the prompt adds another line."""

    def __init__(self, bend: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        parts = torch.randn(7, 1, 4, 5, 6, generator=generator)
        self.parts = torch.nn.Parameter(parts, requires_grad=False)
        self.bend = bend

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
    ) -> torch.Tensor:
        t, p = (x.reshape(-1, 1, 1, 1) for x in (timestep / 1000, prompt))
        a, b, c, d, e, f, g = self.parts
        bends = (6 * t).sin() * c + (9 * t).cos() * d + (13 * t).sin() * e
        return a + t * b + self.bend * bends + p * (f + t * g) + 0 * latents


ONE, NONE = torch.ones(1), torch.zeros(1)


def sample(step: Callable[..., Any], seed: int, num_steps: int) -> torch.Tensor:
    """Euler on an uneven schedule with guidance."""
    x = torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(seed))
    even = torch.linspace(1, 1 / num_steps, num_steps)
    table = 3000 * even / (1 + 2 * even)
    ends = torch.cat([table[1:], torch.zeros(1)])
    for t, end in zip(table, ends, strict=True):
        free, prompted = step(x, t)
        x = x + (end - t) / 1000 * (free + SCALE * (prompted - free))
    return x


def prompted_first(model: Any) -> Callable[..., Any]:
    return lambda x, t: (model(x, t.expand(1), ONE), model(x, t.expand(1), NONE))[::-1]


def free_first(model: Any) -> Callable[..., Any]:
    return lambda x, t: (model(x, t.expand(1), NONE), model(x, t.expand(1), ONE))


def in_a_batch(model: Any) -> Callable[..., Any]:
    return lambda x, t: model(torch.cat([x, x]), t.expand(2), torch.cat([NONE, ONE])).chunk(2)


FORMS = [prompted_first, free_first, in_a_batch]


def tune(model: Any, form: Any, prompts: int = 4, **options: Any) -> Any:
    return pab_compile.tune(
        lambda seed, num_steps: sample(form(model), seed, num_steps),
        range(prompts),
        model=model,
        num_steps=NUM_STEPS,
        **{"rounds": 0, **options},
    )


@pytest.mark.parametrize("form", FORMS)
def test_the_exact_weights_of_linear_dynamics_are_found(form: Any, tmp_path: Path) -> None:
    tuned = tune(Guided(), form, steps=STEPS, half_steps=HALVES)
    assert tuned.alternatives[0].scores["same"].mean > 85
    assert tuned.alternatives[2].scores["same"].mean < 60, "a line in the steps is not exact"
    guidance = tuned.plan.guidance
    assert guidance.steps == (3, 8)
    assert guidance.prompts == ("batch" if form is in_a_batch else "calls")
    assert tuned.plan.cost == 4
    tuned.save(path := tmp_path / "plan.json")
    read = load_plan(path)
    assert isinstance(read, StepPlan)
    assert read.guidance == guidance


@pytest.mark.parametrize("form", FORMS)
def test_the_compiled_model_does_what_was_rehearsed(form: Any, tmp_path: Path) -> None:
    model, row = Guided(bend=0.3), Row.of([1.0] * NUM_STEPS, STEPS, HALVES)
    prompts, computes = ("batch", "second") if form is in_a_batch else ("calls", "first")
    guidance = row.guidance(prompts, computes)
    plan = StepPlan(row.entries(), "p", "output", guidance=guidance)
    path = tmp_path / "plan.json"
    path.write_text(plan_text(step_plan_to_json(plan)))
    rehearsal = Rehearsal(lambda seed, n: sample(form(model), seed, n), model)
    expected = rehearsal.run(9, NUM_STEPS, plan.entries, guidance=guidance).result
    torch._dynamo.reset()
    options = {"plan": str(path), "inner": "eager", "axes": {"latents": "b c h w"}}
    compiled: Any = torch.compile(model, backend="pab", options=options)
    actual = sample(form(compiled), 9, NUM_STEPS)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    seen = pab_compile.stats(compiled)
    assert seen.notes == ()
    assert seen.timeline.strips() == ["CCp~pCpp~ppp"]


def test_guidance_is_left_out_where_that_is_nearer_and_the_table_says_so() -> None:
    tuned = tune(Guided(bend=0.3), in_a_batch, computed=4, prompts=5)
    both = next(each for each in tuned.alternatives if each.name.startswith("both prompts"))
    assert both.gains["same"].mean < -1
    assert tuned.plan.cost == 4
    assert "4 of 12 model calls compute (3.0x fewer): 2 steps compute both" in str(tuned)
    assert max(map(len, str(tuned).splitlines())) <= 80
    whole = tune(Guided(bend=0.3), in_a_batch, computed=4, prompts=5, guidance=False)
    assert whole.plan.guidance is None


def test_without_two_prompts_the_table_says_that_both_compute() -> None:
    tuned = tune(Guided(), lambda m: lambda x, t: [m(x, t.expand(1), ONE)] * 2, computed=4)
    assert tuned.plan.guidance is None
    assert "A model with distilled guidance has nothing to leave out" in " ".join(
        str(tuned).split()
    )


def test_guidance_that_is_no_help_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # Then the error of one prompt weighs as much as that of both.
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 50.0)

    class Rough(Guided):
        """Of neither prompt can its output be told from that of other steps or of the other."""

        def forward(self, latents: Any, timestep: Any, prompt: Any) -> torch.Tensor:
            generator = torch.Generator().manual_seed(int(100 * timestep[0]))
            free, prompted = torch.randn(2, 1, 4, 5, 6, generator=generator)
            return torch.where(prompt.reshape(-1, 1, 1, 1) > 0, prompted, free) + 0 * latents

    tuned = tune(Rough(), in_a_batch, computed=8)
    assert tuned.plan.guidance is None
    assert "was tried, and it was not better" in str(tuned)


@pytest.mark.parametrize(
    ("form", "options", "words"),
    [
        (lambda m: lambda x, t: [m(x, t.expand(1), ONE)] * 2, {"guidance": True}, "makes one call"),
        (
            lambda m: lambda x, t: [m(x, t.expand(1), p) for p in (ONE, NONE, ONE)][:2],
            {"guidance": True},
            "makes 3 calls",
        ),
        (
            lambda m: lambda x, t: (m(x, t.expand(1), ONE), m(x + 1, t.expand(1), NONE)),
            {"guidance": True},
            "not of the same latents",
        ),
        (in_a_batch, {"guidance": True, "computed": 2}, "no step can leave guidance out"),
        (in_a_batch, {"steps": [0, 1, 4], "half_steps": [3]}, "half_steps=.3. are those of"),
        (in_a_batch, {"steps": [0, 1, 4], "guidance": True}, "say which of the steps"),
        (in_a_batch, {"steps": [0, 1, 4], "half_steps": [0]}, "not the first or the last"),
        (in_a_batch, {"steps": [0, 1, 11], "half_steps": [11]}, "not the first or the last"),
    ],
)
def test_guidance_that_cannot_be_left_out_is_refused(form: Any, options: Any, words: str) -> None:
    given = {"computed": None if "steps" in options else 4, **options}
    with pytest.raises(CalibrationError, match=words):
        tune(Guided(), form, **given)


def test_steps_that_compute_both_prompts_alternate() -> None:
    steps = [0, 2, 3, 5, 8, 9, 11]
    assert halves_of(steps, 3) == [2, 5, 9, 11]
    assert halves_of(steps, 6) == [9]


def test_a_plan_that_loses_computes_both_prompts_everywhere() -> None:
    def alternative(name: str, mean: float, gain: float) -> Alternative:
        return Alternative(name, {"same": Score(mean, 1.0)}, {"same": Score(gain, 1.0)})

    guidance = GuidancePlan("calls", "first", (None, (1.0,), None))
    found = StepPlan((COMPUTE,) * 3, "p", "output", guidance=guidance)
    both = alternative("this plan", 30.0, 0.0), alternative("fewer", 40.0, 10.0)
    assert Tuned(found, both, "same", 2, 2, 1.0).plan.guidance is None
