"""Prediction over whole generations: lines and parabolas equal an eager oracle's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LatteTransformer3DModel

import pab_compile
from helpers.eager_code import TEXT, TOKENS, WIDTH, Dit
from helpers.latte import (
    Guidance,
    Loop,
    ModelCall,
    Moment,
    assert_different,
    assert_same,
    calls_of,
    compiled_pab,
    ddim_timesteps,
    draw_latents,
    tiny_latte,
)
from helpers.oracle import Oracle, Rule

EVERY_SECOND = {"spatial": 2, "temporal": 2, "cross": 2, "mlp": 2}
EVERY_THIRD = dict.fromkeys(EVERY_SECOND, 3)
NUM_STEPS = 12


@pytest.fixture(scope="module")
def model() -> LatteTransformer3DModel:
    return tiny_latte(depth=1)


def uneven_timesteps() -> torch.Tensor:
    """The table of a flow-matching scheduler with shift 5: small steps first, then large ones."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(NUM_STEPS)
    return scheduler.timesteps


@dataclass(frozen=True)
class Irregular(Rule):
    """Computes at steps of no regular distance, so that every prediction has other weights."""

    computed: tuple[int, ...] = (0, 1, 3, 6, 7, 10)

    def reuses(self, kind: str, step: int, moment: Moment) -> bool:
        return step not in self.computed

    def options(self) -> dict[str, Any]:
        def plan(site: Any, step: int, num_steps: int, timestep: float) -> int | None:
            return None if step in self.computed else self.order(site.kind)

        return {"plan": plan, "predict_in": self.predict_in}


@pytest.mark.sample("rule3-gated-none-uneven_timesteps")
@pytest.mark.parametrize(
    ("rule", "cut", "guidance", "timesteps"),
    [
        (Rule(EVERY_SECOND, (0.0, 1.0), 2), "attention", "batched", ddim_timesteps),
        (
            Rule(EVERY_SECOND, (0.0, 1.0), {"spatial": 2, "cross": 1, "mlp": 2}),
            "gated",
            "two calls",
            ddim_timesteps,
        ),
        (Irregular(predict=2), "attention", "none", ddim_timesteps),
        (Irregular(predict=2, predict_in="timestep"), "gated", "none", uneven_timesteps),
        (
            Rule(EVERY_THIRD, (0.0, 1.0), 1, predict_in="timestep"),
            "attention",
            "two calls",
            uneven_timesteps,
        ),
    ],
)
def test_a_generation_equals_the_oracle(
    model: LatteTransformer3DModel,
    rule: Rule,
    cut: str,
    guidance: Guidance,
    timesteps: Callable[..., torch.Tensor],
) -> None:
    table = timesteps() if timesteps is uneven_timesteps else timesteps(NUM_STEPS)
    expected = Loop(Oracle(model, rule, cut), table, guidance=guidance).run()
    repeated = Rule(rule.ranges, rule.window) if type(rule) is Rule else Irregular()
    assert_different(expected, Loop(Oracle(model, repeated, cut), table, guidance=guidance).run())
    compiled = compiled_pab(model, cut=cut, **rule.options())
    assert_same(Loop(calls_of(compiled), table, guidance=guidance).run(), expected, 3e-5)


@pytest.mark.long
def test_steps_and_timesteps_differ_where_steps_are_uneven(model: LatteTransformer3DModel) -> None:
    table = uneven_timesteps()
    outputs = []
    for predict_in in ("step", "timestep"):
        rule = Rule(EVERY_THIRD, (0.0, 1.0), 1, predict_in)
        outputs.append(Loop(calls_of(compiled_pab(model, **rule.options())), table).run())
    assert_different(*outputs)


def test_timesteps_that_are_stated_are_predicted_in(model: LatteTransformer3DModel) -> None:
    table = uneven_timesteps()
    rule = Rule(EVERY_THIRD, (0.0, 1.0), 1, "timestep")
    compiled = compiled_pab(model, **rule.options())

    def call(*args: Any) -> torch.Tensor:
        with pab_compile.step(args[-1].step, NUM_STEPS):
            return calls_of(compiled)(*args)

    loop = Loop(call, table, by_value=True)
    with pab_compile.generation(timesteps=table):
        actual = loop.run()
    assert_same(actual, Loop(Oracle(model, rule), table).run(), 3e-5)


def test_nothing_is_left_of_a_generation_that_was_broken_off(
    model: LatteTransformer3DModel,
) -> None:
    rule = Rule(EVERY_SECOND, (0.0, 1.0), 2)
    compiled = compiled_pab(model, **rule.options())
    broken = Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS), draw_latents(9)).steps()
    for _ in range(7):
        next(broken)
    table = ddim_timesteps(NUM_STEPS)
    assert_same(Loop(calls_of(compiled), table).run(), Loop(Oracle(model, rule), table).run())


def test_where_guidance_pauses_a_lane_goes_on_from_its_own_outputs(
    model: LatteTransformer3DModel,
) -> None:
    rule, table = Rule(EVERY_SECOND, (0.0, 1.0), 2), ddim_timesteps(NUM_STEPS)

    def with_pause(call: ModelCall) -> torch.Tensor:
        loop = Loop(call, table)
        steps = loop.steps()
        for step in range(NUM_STEPS):
            loop.guidance = "none" if step in (4, 5) else "two calls"
            next(steps)
        return torch.stack(loop.predictions)

    expected = with_pause(Oracle(model, rule))
    assert_same(with_pause(calls_of(compiled_pab(model, **rule.options()))), expected)


class Doubting(Oracle):
    """Keeps nothing of the first step, as one must who cannot know that it belongs to the rest."""

    def branch(self, name: str, kind: str, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        result = super().branch(name, kind, compute)
        if self._now.step == 0:
            self._outputs[self._now.lane, name].clear()
        return result


class Stepwise:
    """A method per step, of what has the schedule: its first call may be of another video."""

    def __init__(self, call: ModelCall, timesteps: torch.Tensor) -> None:
        self._call = call
        self.timesteps = timesteps

    def __call__(self, *args: Any) -> torch.Tensor:
        return self._call(*args)


def test_a_first_step_that_may_be_of_another_video_bends_no_line(
    model: LatteTransformer3DModel,
) -> None:
    rule = Rule(EVERY_SECOND, (100, 800), 2)
    table = ddim_timesteps(NUM_STEPS)
    expected = Loop(Doubting(model, rule), table, by_value=True).run()
    assert_different(expected, Loop(Oracle(model, rule), table, by_value=True).run())
    compiled = compiled_pab(model, **rule.options())
    call = Stepwise(calls_of(compiled), table)
    assert_same(Loop(call, table, by_value=True).run(), expected)


def test_distances_that_change_compile_nothing(model: LatteTransformer3DModel) -> None:
    compiled = []

    def inner(graph_module: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        compiled.append(graph_module)
        return graph_module.forward

    model_ = compiled_pab(model, **Irregular(predict=2).options(), inner=inner)
    loop = Loop(calls_of(model_), ddim_timesteps(NUM_STEPS)).steps()
    next(loop)
    count = len(compiled)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in loop:
            pass
    assert len(compiled) == count > 0


@pytest.mark.long
def test_explain_counts_the_history(model: LatteTransformer3DModel) -> None:
    inputs = {
        "hidden_states": draw_latents(),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 5, 12),
    }
    sizes = {}
    for order in (0, 2):
        options = {"ranges": EVERY_SECOND, "predict": {"spatial": order}}
        found = pab_compile.explain(model, options=options, **inputs)
        sizes[order] = {site.kind: (site.cache_bytes, site.history) for site in found.sites}
    one = sizes[0]["spatial"][0]
    assert [sizes[order]["spatial"] for order in (0, 2)] == [(one, 1), (3 * one, 3)]
    assert sizes[2]["mlp"] == sizes[0]["mlp"]


def test_a_call_of_a_step_may_be_repeated() -> None:
    # What its first call freed is computed by the second one.
    model = Dit().requires_grad_(False)
    options = {"inner": "eager", "ranges": {"full": 3, "cross": 3}, "window": (0.0, 1.0)}
    compiled = torch.compile(model, backend="pab", options={**options, "predict": 1})
    inputs = torch.randn(1, TOKENS, 4), torch.randn(1, TEXT, WIDTH)

    def outputs(times: int) -> torch.Tensor:
        found = []
        with torch.no_grad(), pab_compile.generation():
            for index in range(NUM_STEPS):
                x, timestep = inputs[0] + index, torch.tensor([500 - 20 * index])
                for _ in range(times):
                    with pab_compile.step(index, NUM_STEPS, lane="cond"):
                        found.append(compiled(x, timestep, inputs[1]))
        return torch.stack(found)

    twice, once = outputs(times=2), outputs(times=1)
    assert torch.equal(twice[::2], once)
    for again, first, index in zip(twice[1::2], once, range(NUM_STEPS), strict=True):
        eager = model(inputs[0] + index, torch.tensor([500 - 20 * index]), inputs[1])
        assert torch.equal(again, first) or torch.equal(again, eager)
