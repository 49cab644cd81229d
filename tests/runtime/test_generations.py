"""Every generation equals the oracle run on it alone, whatever ran before it or beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import LatteTransformer3DModel, PNDMScheduler

import pab_compile
from helpers.latte import (
    Guidance,
    Loop,
    Moment,
    assert_same,
    calls_of,
    compiled_pab,
    ddim_timesteps,
    draw_latents,
    draw_prompt,
)
from helpers.oracle import Oracle
from helpers.pairs import NUM_STEPS, RULE, Pair, Replay, advance, recorded

pytestmark = pytest.mark.compiled_once

NOW = Moment(0, NUM_STEPS, 0.0, "cond")  # a compiled model is not told


# One after the other.


@pytest.mark.sample("two calls")
@pytest.mark.parametrize("guidance", ["none", "batched", "two calls"])
def test_generations_in_a_row(
    model: LatteTransformer3DModel, compiled: Callable[..., Any], guidance: Guidance
) -> None:
    timesteps = ddim_timesteps(NUM_STEPS)
    for seed in (1, 2):
        noise = draw_latents(seed)
        Pair(model, compiled, timesteps=timesteps, latents=noise, guidance=guidance).run()
    # A new table with the same values, and another prompt.
    Pair(model, compiled, latents=draw_latents(5), guidance=guidance).run()
    Pair(model, compiled, prompt=draw_prompt(5), guidance=guidance).run()
    lanes = {"none": 1, "batched": 1, "two calls": 2}
    assert pab_compile.stats(compiled).lanes == lanes[guidance]  # type: ignore[arg-type]


def test_timesteps_by_value(model: LatteTransformer3DModel, compiled: Callable[..., Any]) -> None:
    for seed, guidance in ((1, "none"), (2, "none"), (3, "two calls"), (4, "two calls")):
        Pair(model, compiled, latents=draw_latents(seed), guidance=guidance, by_value=True).run()


def test_another_number_of_steps(
    model: LatteTransformer3DModel, compiled: Callable[..., Any]
) -> None:
    for by_value in (False, True):
        for num_steps in (12, 10, 20, 12):
            Pair(model, compiled, timesteps=ddim_timesteps(num_steps), by_value=by_value).run()


def test_another_resolution_and_back(
    model: LatteTransformer3DModel, compiled: Callable[..., Any]
) -> None:
    for size in (8, 12, 8):
        Pair(model, compiled, latents=draw_latents(size=size)).run()


@pytest.mark.long
def test_another_batch_size_and_back(
    model: LatteTransformer3DModel, compiled: Callable[..., Any]
) -> None:
    for batch in (2, 1, 2):
        prompt = draw_prompt(batch=batch)
        Pair(model, compiled, latents=draw_latents(batch=batch), prompt=prompt).run()


@pytest.mark.parametrize("start", [1, 5, 8])
def test_image_to_image_starts_in_the_middle_of_a_table(
    model: LatteTransformer3DModel, compiled: Callable[..., Any], start: int
) -> None:
    timesteps = ddim_timesteps(NUM_STEPS)
    Pair(model, compiled, timesteps=timesteps).run()
    for seed in (3, 4):
        pair = Pair(model, compiled, timesteps=timesteps, latents=draw_latents(seed), start=start)
        pair.run()


def test_under_inference_mode(model: LatteTransformer3DModel, compiled: Callable[..., Any]) -> None:
    for by_value in (False, True):
        for seed in (1, 2):
            with torch.inference_mode():
                latents, prompt = draw_latents(seed), draw_prompt()
                Pair(model, compiled, latents=latents, prompt=prompt, by_value=by_value).run()
    Pair(model, compiled).run()


# Broken off.


@pytest.mark.sample("True")
@pytest.mark.parametrize("by_value", [False, True])
def test_after_a_generation_that_was_stopped_between_calls(
    model: LatteTransformer3DModel, compiled: Callable[..., Any], by_value: bool
) -> None:
    for timesteps in (ddim_timesteps(NUM_STEPS), None):
        table = {} if timesteps is None else {"timesteps": timesteps}
        stopped = Pair(model, compiled, by_value=by_value, **table)
        advance(stopped.actual.steps(), 6)
        stopped.check()
        for seed, start in ((8, 0), (9, 6), (10, 7)):
            noise = draw_latents(seed)
            Pair(model, compiled, latents=noise, by_value=by_value, start=start, **table).run()


@pytest.mark.parametrize("by_value", [False, True])
def test_a_sampler_of_the_same_function_goes_on_where_another_one_stopped(
    model: LatteTransformer3DModel, compiled: Callable[..., Any], by_value: bool
) -> None:
    reused: list[set[str]] = []
    call, prompt, timesteps = recorded(compiled, reused), draw_prompt(), ddim_timesteps(NUM_STEPS)
    first, second = draw_latents(1), draw_latents(2)
    predictions = []
    with torch.no_grad():
        for t in timesteps[:5]:
            given = t.clone() if by_value else t
            predictions.append(call(first, given.expand(1), prompt, NOW))
            first = first + 0.3 * predictions[-1]
        for t in timesteps[5:]:
            given = t.clone() if by_value else t
            predictions.append(call(second, given.expand(1), prompt, NOW))
            second = second + 0.3 * predictions[-1]
    assert any(reused[:5])
    assert any(reused[5:])
    for seed, start, steps in ((1, 0, slice(0, 5)), (2, 5, slice(5, None))):
        replay = Replay(RULE.ranges, RULE.window, reused=tuple(map(frozenset, reused[steps])))
        alone = Loop(Oracle(model, replay), timesteps, draw_latents(seed), prompt, start=start)
        advance(alone.steps(), len(reused[steps]))
        assert_same(torch.stack(predictions[steps]), torch.stack(alone.predictions))
    assert any("from another line" in note for note in pab_compile.stats(compiled).notes)  # type: ignore[arg-type]


@pytest.mark.parametrize("by_value", [False, True])
def test_a_loop_over_videos_around_the_loop_over_steps(
    model: LatteTransformer3DModel, compiled: Callable[..., Any], by_value: bool
) -> None:
    reused: list[set[str]] = []
    call, prompt, timesteps = recorded(compiled, reused), draw_prompt(), ddim_timesteps(NUM_STEPS)
    videos = [(1, 0, 4), (2, 4, 5), (3, 5, NUM_STEPS)]  # each begins where the last one was left
    predictions = []
    with torch.no_grad():
        for seed, start, stop in videos:
            latents = draw_latents(seed)
            for step, t in enumerate(timesteps[start:], start):
                if step == stop:
                    break
                given = t.clone() if by_value else t
                predictions.append(call(latents, given.expand(1), prompt, NOW))
                latents = latents + 0.3 * predictions[-1]
    assert any(reused[:4])
    assert any(reused[5:])
    # The one step of the second video counts as a first one of the third, and is not reused.
    assert pab_compile.stats(compiled).steps == NUM_STEPS - 4  # type: ignore[arg-type]
    for seed, start, stop in videos:
        steps = slice(start, stop)
        replay = Replay(RULE.ranges, RULE.window, reused=tuple(map(frozenset, reused[steps])))
        alone = Loop(Oracle(model, replay), timesteps, draw_latents(seed), prompt, start=start)
        advance(alone.steps(), stop - start)
        assert_same(torch.stack(predictions[steps]), torch.stack(alone.predictions))


def test_reset_between_steps_frees_what_was_cached(
    model: LatteTransformer3DModel, compiled: Callable[..., Any]
) -> None:
    timesteps = ddim_timesteps(NUM_STEPS)
    advance(Loop(calls_of(compiled), timesteps).steps(), 6)
    pab_compile.reset()
    Pair(model, compiled, timesteps=timesteps, latents=draw_latents(7)).run()


@pytest.mark.sample("True")
@pytest.mark.parametrize("by_value", [False, True])
def test_after_an_exception_inside_a_call(model: LatteTransformer3DModel, by_value: bool) -> None:
    fuse = [False]

    def inner(graph_module: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        def run(*args: torch.Tensor) -> Any:
            if fuse[0] and len(args) > 6:
                raise MemoryError("out of memory, half-way through the model")
            return graph_module(*args)

        return run

    compiled = compiled_pab(model, **{**RULE.options(), "inner": inner})
    timesteps = ddim_timesteps(NUM_STEPS)
    pair = Pair(model, compiled, timesteps=timesteps, by_value=by_value)
    steps = pair.actual.steps()
    advance(steps, 6)
    fuse[0] = True
    with pytest.raises(MemoryError, match="half-way"):
        next(steps)
    fuse[0] = False
    pair.check()
    noise = draw_latents(7)
    Pair(model, compiled, timesteps=timesteps, latents=noise, by_value=by_value).run()


# Prompts and guidance.


@pytest.mark.parametrize("before", ["two calls", "batched"])
@pytest.mark.parametrize("after", ["none", "batched", "two calls"])
def test_guidance_changes_half_way(
    model: LatteTransformer3DModel,
    compiled: Callable[..., Any],
    before: Guidance,
    after: Guidance,
) -> None:
    pair = Pair(model, compiled, guidance=before)
    check_changed_half_way(pair, lambda loop: setattr(loop, "guidance", after))


def test_a_prompt_is_replaced_half_way(
    model: LatteTransformer3DModel, compiled: Callable[..., Any]
) -> None:
    pair = Pair(model, compiled)

    def change(loop: Loop) -> None:
        loop.prompt = draw_prompt(9)

    _oracle_in_two_lanes(pair, change)


@pytest.mark.parametrize("inference_mode", [False, True])
def test_a_prompt_is_modified_in_place_half_way(
    model: LatteTransformer3DModel, compiled: Callable[..., Any], inference_mode: bool
) -> None:
    with torch.inference_mode(inference_mode):
        pair = Pair(model, compiled)
        for loop in (pair.actual, pair.oracle, pair.eager):
            loop.prompt = draw_prompt()

        def change(loop: Loop) -> None:
            loop.prompt.mul_(-0.7)

        _oracle_in_two_lanes(pair, change)


def _oracle_in_two_lanes(pair: Pair, change: Callable[[Loop], None]) -> None:
    """A changed prompt is another lane, which starts without outputs."""
    oracle = pair.oracle.call

    def switch(loop: Loop) -> None:
        change(loop)
        loop.call = lambda x, t, p, now: oracle(x, t, p, dataclasses.replace(now, lane="changed"))

    check_changed_half_way(pair, change, switch)


def check_changed_half_way(
    pair: Pair, change: Callable[[Loop], None], of_oracle: Callable[[Loop], None] | None = None
) -> None:
    """Change the three loops of a pair after six steps, and compare them at the end."""
    changes = (change, of_oracle or change, change)
    for loop, apply in zip((pair.actual, pair.oracle, pair.eager), changes, strict=True):
        steps = loop.steps()
        advance(steps, 6)
        apply(loop)
        for _ in steps:
            pass
    pair.check()


# Schedulers that call more often than there are timesteps, and calls outside of any generation.


@pytest.mark.sample("True-two calls-True")
@pytest.mark.parametrize("by_value", [False, True])
@pytest.mark.parametrize("guidance", ["batched", "two calls"])
@pytest.mark.parametrize("skip_prk_steps", [False, True])
def test_repeated_timesteps_of_pndm(
    model: LatteTransformer3DModel,
    compiled: Callable[..., Any],
    skip_prk_steps: bool,
    guidance: Guidance,
    by_value: bool,
) -> None:
    def scheduler() -> PNDMScheduler:
        made = PNDMScheduler(skip_prk_steps=skip_prk_steps)
        made.set_timesteps(NUM_STEPS)
        return made

    timesteps = scheduler().timesteps
    assert len(timesteps) == NUM_STEPS + (1 if skip_prk_steps else 9)
    assert len(set(timesteps.tolist())) < len(timesteps)
    for seed in (1, 2):
        noise = draw_latents(seed)
        pair = Pair(
            model,
            compiled,
            timesteps=timesteps,
            latents=noise,
            guidance=guidance,
            by_value=by_value,
        )
        for loop in (pair.actual, pair.oracle, pair.eager):
            own = scheduler()
            loop.update = lambda *args, own=own: own.step(*args).prev_sample  # type: ignore[misc]
        pair.run()
    Pair(model, compiled, latents=draw_latents(3), guidance=guidance, by_value=by_value).run()


@pytest.mark.parametrize("by_value", [False, True])
def test_a_lone_call_of_the_same_noise_before(
    model: LatteTransformer3DModel, compiled: Callable[..., Any], by_value: bool
) -> None:
    pair = Pair(model, compiled, by_value=by_value)
    advance(dataclasses.replace(pair.actual, predictions=[]).steps(), 1)
    pair.run()


@pytest.mark.parametrize("by_value", [False, True])
@pytest.mark.parametrize("start", [0, 1])
def test_a_lone_call_of_other_noise_before(
    model: LatteTransformer3DModel, compiled: Callable[..., Any], start: int, by_value: bool
) -> None:
    pair = Pair(model, compiled, by_value=by_value)
    lone = dataclasses.replace(pair.actual, predictions=[], latents=draw_latents(9), start=start)
    advance(lone.steps(), 1)
    pair.run()


def test_a_lone_call_with_other_tensors_before(
    model: LatteTransformer3DModel, compiled: Callable[..., Any]
) -> None:
    warm_up = Loop(calls_of(compiled), torch.tensor([500, 400]), prompt=draw_prompt(8))
    advance(warm_up.steps(), 1)
    Pair(model, compiled).run()


@pytest.mark.long
def test_rows_at_different_timesteps_are_computed(
    model: LatteTransformer3DModel, compiled: Callable[..., Any]
) -> None:
    latents, prompt = draw_latents(batch=2), draw_prompt(batch=2)
    first, second = Pair(model, compiled), Pair(model, compiled, latents=draw_latents(3))
    steps = first.actual.steps()
    for _ in range(6):
        next(steps)
        timestep = torch.tensor([700, 20])
        with torch.no_grad():
            actual, expected = (
                call(latents, timestep=timestep, encoder_hidden_states=prompt).sample
                for call in (compiled, model)
            )
        assert_same(actual, expected)
    for _ in steps:
        pass
    first.check()
    second.run()
