"""Models, and compilations of one model, that run in turns share nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import LatteTransformer3DModel

import pab_compile
from helpers.captured import SmallDiT
from helpers.latte import (
    Loop,
    assert_different,
    assert_same,
    calls_of,
    compiled_pab,
    ddim_timesteps,
    draw_latents,
    draw_prompt,
    tiny_latte,
)
from helpers.oracle import Oracle, Rule
from pab_compile import PabError

NUM_STEPS = 12


def alternating(loops: list[Loop]) -> list[torch.Tensor]:
    """Predictions of loops whose steps are run in turns."""
    for _ in zip(*(loop.steps() for loop in loops), strict=True):
        pass
    return [torch.stack(loop.predictions) for loop in loops]


def check_alternating(models: list[Any], compiled: list[Any], rules: list[Rule]) -> None:
    """Run in turns on one table, noise and prompt: all that is left to tell them apart."""
    shared = {"timesteps": ddim_timesteps(NUM_STEPS), "prompt": draw_prompt()}
    noise = draw_latents()
    oracles = [Oracle(model, rule) for model, rule in zip(models, rules, strict=True)]
    expected = [Loop(oracle, latents=noise, **shared).run() for oracle in oracles]
    for other in expected[1:]:
        assert_different(other, expected[0])
    actual = alternating([Loop(calls_of(each), latents=noise, **shared) for each in compiled])
    for one, right in zip(actual, expected, strict=True):
        assert_same(one, right)
    for each, oracle in zip(compiled, oracles, strict=True):
        reused = pab_compile.stats(each).reused
        assert reused == {kind: oracle.reused()[kind] for kind in reused}


@pytest.mark.long
@pytest.mark.parametrize("same_options", [False, True])
def test_instances_of_one_class_share_nothing(
    model: LatteTransformer3DModel, same_options: bool
) -> None:
    other = tiny_latte(depth=1, seed=7)
    options = {"inner": "eager"}
    compiled = [
        torch.compile(each, backend="pab", options=options if same_options else dict(options))
        for each in (model, other)
    ]
    check_alternating([model, other], compiled, [Rule(), Rule()])


def test_models_that_share_weights_share_nothing(model: LatteTransformer3DModel) -> None:
    options = {"inner": "eager"}
    other = tiny_latte(depth=1, seed=7)
    other.pos_embed = model.pos_embed  # the first weights of the graph
    other.adaln_single = model.adaln_single
    compiled = [torch.compile(m, backend="pab", options=options) for m in (model, other)]
    check_alternating([model, other], compiled, [Rule(), Rule()])


def test_compilations_of_one_model_share_nothing(model: LatteTransformer3DModel) -> None:
    rules = [Rule(), Rule({"spatial": 3, "mlp": 2}, (0.0, 1.0), predict=1)]
    compiled = [compiled_pab(model, **rule.options()) for rule in rules]
    check_alternating([model] * 2, compiled, rules)


def test_a_model_compiled_twice_alike_has_statistics_of_its_own_under_both_names(
    model: LatteTransformer3DModel,
) -> None:
    one, other = (torch.compile(model, backend="pab", options={"inner": "eager"}) for _ in range(2))
    expected = Loop(Oracle(model), ddim_timesteps(NUM_STEPS)).run()
    assert_same(Loop(calls_of(one), ddim_timesteps(NUM_STEPS)).run(), expected)
    with pytest.raises(PabError, match="Another compilation of it ran"):
        pab_compile.stats(other)
    Loop(calls_of(other), ddim_timesteps(NUM_STEPS // 2)).run()  # it runs the code of the first
    assert [pab_compile.stats(each).steps for each in (one, other)] == [NUM_STEPS, NUM_STEPS // 2]
    assert pab_compile.stats(model).steps == NUM_STEPS // 2  # the last one of any


@pytest.mark.long
def test_a_generation_runs_on_the_code_of_two_compilations_alike(
    model: LatteTransformer3DModel,
) -> None:
    rule = Rule({"spatial": 2, "temporal": 3, "cross": 4, "mlp": 3}, (100, 800))
    one, other = compiled_pab(model, **rule.options()), compiled_pab(model, **rule.options())
    Loop(calls_of(one), ddim_timesteps(NUM_STEPS), guidance="two calls").run()
    mixed = Loop(calls_of(other), ddim_timesteps(NUM_STEPS), guidance="batched")
    expected = Loop(Oracle(model, rule), ddim_timesteps(NUM_STEPS), guidance="batched")
    for loop in (mixed, expected):
        for step in loop.steps():  # half-way to a batch size that the first one has seen
            loop.guidance = "batched" if step < 5 else "none"
    assert_same(torch.stack(mixed.predictions), torch.stack(expected.predictions))


def test_a_pipeline_has_the_statistics_of_its_last_model_and_names_the_other() -> None:
    torch.manual_seed(0)
    pipe = SimpleNamespace(high=SmallDiT(1), low=SmallDiT(1))
    latents, prompt = torch.randn(2, 4, 3, 2, 5), torch.randn(2, 7, 4)
    with torch.no_grad():
        for part in (pipe.high, pipe.low):
            part.compile(backend="pab", options={"inner": "eager"})
            with pab_compile.generation():
                part(latents, torch.rand(2), prompt)
    said = "these are of low; see also pab_compile.stats(pipe.high)"
    assert said in pab_compile.stats(pipe).notes
    assert not any("see also" in note for note in pab_compile.stats(pipe.high).notes)
