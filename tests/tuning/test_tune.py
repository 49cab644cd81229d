"""Tune: weights of a known sampler are found, and the compiled model runs what was rehearsed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pab_compile
from helpers.captured import SmallDiT, usual
from helpers.curve import COMPUTED, NUM_STEPS, Curve, euler, multistep, timesteps_of
from pab_compile.plans.plan import COMPUTE
from pab_compile.plans.plan_file import load_plan
from pab_compile.plans.step_plan import StepPlan
from pab_compile.plans.tuned_model import TunedModel
from pab_compile.tuning import from_generations, work
from pab_compile.tuning.rehearsal import Rehearsal
from pab_compile.tuning.row import Row
from pab_compile.tuning.score import Score, psnr
from pab_compile.tuning.together import derivative_calls
from pab_compile.tuning.tuned import Alternative, Tuned


def tuned_curve(sampler: Any, num_prompts: int, **options: Any) -> Tuned:
    """A plan for the parabola, without the last fit unless the options say otherwise."""
    model = Curve()
    return pab_compile.tune(
        lambda seed, num_steps: sampler(model, seed, num_steps),
        range(num_prompts),
        model=model,
        num_steps=NUM_STEPS,
        steps=COMPUTED,
        **{"rounds": 0, **options},
    )


@pytest.mark.parametrize("sampler", [euler, multistep])
def test_the_exact_weights_of_linear_dynamics_are_found(sampler: Any) -> None:
    tuned = tuned_curve(sampler, 5)
    ours, _, line = tuned.alternatives
    assert ours.scores["same"].mean > 85
    assert line.scores["same"].mean < 60
    assert tuned.best is ours
    assert [step for step, e in enumerate(tuned.plan.entries) if e == COMPUTE] == COMPUTED


def test_the_moves_of_a_gap_are_those_of_the_parabola() -> None:
    tuned = tuned_curve(euler, 3)
    t = timesteps_of(NUM_STEPS).double() / 1000
    lengths = t - torch.cat([t[1:], torch.zeros(1)])
    for gap in (2, 3, 4):
        sources = COMPUTED[gap - 2 : gap + 1]
        steps = range(sources[-1] + 1, [*COMPUTED, NUM_STEPS][gap + 1])
        weights = torch.tensor([tuned.found.entries[step] for step in steps]).double()
        moves = (lengths[list(steps), None] * weights).sum(0)
        powers = torch.stack([t[sources] ** n for n in range(3)])
        wanted = torch.stack([(lengths[list(steps)] * t[list(steps)] ** n).sum() for n in range(3)])
        torch.testing.assert_close(powers @ moves, wanted, atol=1e-4, rtol=1e-3)


def guided(call: Callable[..., torch.Tensor], seed: int, num_steps: int) -> torch.Tensor:
    """Guidance by two calls per step."""
    x = usual("latents") * (1 + 0.1 * seed)
    one, two = usual("prompt"), usual("prompt").flip(1) * 0.5
    for t in timesteps_of(num_steps):
        cond, free = call(x, t.expand(2), one), call(x, t.expand(2), two)
        x = x - (free + 2 * (cond - free)) / num_steps
    return x


@pytest.fixture(scope="module")
def dit() -> SmallDiT:
    torch.manual_seed(0)
    return SmallDiT(2).requires_grad_(False)


@pytest.fixture(scope="module")
def tuned(dit: SmallDiT) -> Any:
    return pab_compile.tune(
        lambda seed, num_steps: guided(dit, seed, num_steps),
        range(4),
        model=dit,
        num_steps=NUM_STEPS,
        computed=4,
        rounds=1,
        guidance=False,
    )


def test_a_tuned_plan_is_better_than_a_line_and_than_fewer_steps(tuned: Any) -> None:
    ours, fewer, line = (each.scores["same"].mean for each in tuned.alternatives)
    assert ours > line + 1
    assert ours > fewer + 1
    assert tuned.found.num_computed == 4
    # Per prompt all steps, two choices gap by gap, and the derivatives; then four per step tried.
    computed = [step for step, entry in enumerate(tuned.found.entries) if entry == COMPUTE]
    derivatives = derivative_calls(Row.of([1.0] * NUM_STEPS, computed))
    tried = (tuned.full_generations / 2 * NUM_STEPS - NUM_STEPS - 2 * 4 - derivatives) / 4
    assert tried == pytest.approx(round(tried))
    assert 2 <= tried <= 9
    assert "this plan *" in str(tuned)
    assert max(map(len, str(tuned).splitlines())) <= 80


@pytest.mark.parametrize("how", ["file", "handle"])
def test_the_compiled_model_does_what_was_rehearsed(
    dit: SmallDiT, tuned: Any, how: str, tmp_path: Path
) -> None:
    tuned.save(path := tmp_path / "plan.json")
    expected = Rehearsal(lambda seed, n: guided(dit, seed, n), dit).run(
        9, NUM_STEPS, tuned.plan.entries
    )
    torch._dynamo.reset()
    if how == "file":
        options = {"plan": str(path), "inner": "eager"}
        compiled: Any = torch.compile(dit, backend="pab", options=options)
        actual = guided(compiled, 9, NUM_STEPS)
        seen = pab_compile.stats(compiled)
    else:
        handle = pab_compile.enable(dit, plan=tuned, inner="eager")
        actual = guided(dit, 9, NUM_STEPS)
        (seen,) = handle.stats().values()
        handle.disable()
    assert expected.result is not None
    torch.testing.assert_close(actual, expected.result, atol=1e-5, rtol=1e-5)
    assert seen.reused == {"output": 16}  # 8 of 12 steps, two calls each
    assert seen.notes == (), "it is the model that the plan was tuned on"


def test_a_file_says_how_it_was_made_and_is_read_again(
    dit: SmallDiT, tuned: Any, tmp_path: Path
) -> None:
    tuned.save(path := tmp_path / "plan.json")
    read = load_plan(path)
    assert isinstance(read, StepPlan)
    assert (read.entries, read.timesteps, read.cut) == (
        tuned.plan.entries,
        tuned.plan.timesteps,
        "output",
    )
    assert read.model == TunedModel.of(dit)
    content = json.loads(path.read_text())
    assert content["made_by"]["teacher"] == "same"
    assert set(content["measured"]["psnr"]["this plan"]) == {"same"}


def test_with_another_schedule_every_step_computes_and_a_note_says_why(
    dit: SmallDiT, tuned: Any, tmp_path: Path
) -> None:
    tuned.save(path := tmp_path / "plan.json")
    compiled: Any = torch.compile(dit, backend="pab", options={"plan": str(path), "inner": "eager"})
    torch.testing.assert_close(guided(compiled, 0, 10), guided(dit, 0, 10))
    (note,) = pab_compile.stats(compiled).notes
    assert "is made for 12 steps, and the generation has 10: run pab_compile.tune" in note


def test_the_teacher_may_have_more_steps() -> None:
    tuned = tuned_curve(euler, 4, teacher="converged")
    ours, fewer, line = tuned.alternatives
    assert set(ours.scores) == {"same", "converged"}
    assert ours.scores["converged"].mean > 10 + max(
        fewer.scores["converged"].mean, line.scores["converged"].mean
    )


def test_if_fewer_steps_are_better_the_plan_computes_every_step() -> None:
    class Noisy(Curve):
        def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            seed = int(100 * timestep[0])
            return torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))

    model = Noisy()

    def generate(seed: int, num_steps: int) -> torch.Tensor:
        return euler(model, seed, NUM_STEPS)  # it computes every step, whatever it is told

    tuned = pab_compile.tune(
        generate, range(6), model=model, num_steps=NUM_STEPS, steps=COMPUTED, rounds=0
    )
    assert tuned.best.name == "5 of 12 steps"
    assert set(tuned.plan.entries) == {COMPUTE}
    assert "so the plan computes every step" in str(tuned)


def test_one_prompt_does_not_show_that_an_alternative_is_better() -> None:
    better = {"same": Score.of([50.0])}
    ours = Alternative("this plan", {"same": Score.of([40.0])}, {"same": Score.of([0.0])})
    other = Alternative("fewer", better, {"same": Score.of([10.0])})
    found = StepPlan((COMPUTE, 0), "p", "output")
    tuned = Tuned(found, (ours, other), "same", 2, 1, 3.0)
    assert tuned.best is other
    assert tuned.plan == found


def test_an_interrupted_fit_keeps_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "together", interrupted)
    tuned = tuned_curve(euler, 3, rounds=1)
    assert tuned.alternatives[0].scores["same"].mean > 75


def test_a_score_has_an_interval_and_equal_results_have_100_db() -> None:
    assert str(Score.of([30.0, 32.0, 34.0])) == "32.0 ± 2.3"
    assert str(Score.of([30.0])) == "30.0"
    x = torch.randn(5)
    assert psnr(x, x) == 100
    assert psnr(x + 0.1 * (x.max() - x.min()), x) == pytest.approx(20)


def test_without_a_terminal_the_log_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(from_generations._log, "info", lambda text, *more: said.append(text % more))
    with from_generations._bar(False) as (show, _):
        show("measuring")
        assert said == []
        monkeypatch.setattr(from_generations, "_QUIET", -1.0)
        show("measuring")
    assert said == ["measuring: 2 generations in 0 s"]
