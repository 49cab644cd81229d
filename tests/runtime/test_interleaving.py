"""Generations that run at once: each gives what it would give alone."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import LatteTransformer3DModel

import pab_compile
from helpers.latte import (
    Loop,
    ModelCall,
    Moment,
    calls_of,
    compiled_pab,
    ddim_timesteps,
    draw_latents,
    draw_prompt,
    tiny_latte,
)
from helpers.pairs import NUM_STEPS, RULE, Pair, advance, pairs_of

pytestmark = pytest.mark.compiled_once


def alternate(pairs: list[Pair], burst: int, lead: int = 0) -> None:
    """Run the pairs' compiled loops in turns of some steps, the first one ahead of the others."""
    running = [pair.actual.steps() for pair in pairs]
    advance(running[0], lead)
    while running:
        for steps in list(running):
            for _ in range(burst):
                if next(steps, None) is None:
                    running.remove(steps)
                    break


# Without scopes: each video is known by the generator that loops over its steps.


@pytest.mark.parametrize(("burst", "lead"), [(1, 5), (3, 0), (5, 2)])
@pytest.mark.parametrize("same_prompt", [True, False])
@pytest.mark.parametrize("clock", ["tables of their own", "one table", "values"])
def test_generators_in_turns_are_as_if_each_were_alone(
    model: LatteTransformer3DModel,
    compiled: Callable[..., Any],
    clock: str,
    same_prompt: bool,
    burst: int,
    lead: int,
) -> None:
    by_value = clock == "values"
    table = {"timesteps": ddim_timesteps(NUM_STEPS)} if clock == "one table" else {}
    prompts = [draw_prompt(2 if same_prompt else 10 + index) for index in range(2)]
    pairs = [
        Pair(model, compiled, latents=draw_latents(i), prompt=prompt, by_value=by_value, **table)
        for i, prompt in enumerate(prompts)
    ]
    alternate(pairs, burst, lead)
    for pair in pairs:
        pair.check()


# With scopes, in tasks, in threads: each as if it were alone.


@pytest.mark.parametrize("by_value", [False, True])
def test_tasks_in_scopes_of_their_own(
    model: LatteTransformer3DModel, compiled: Callable[..., Any], by_value: bool
) -> None:
    timesteps = ddim_timesteps(NUM_STEPS)
    pairs = pairs_of(model, compiled, 3, timesteps=timesteps, by_value=by_value)

    async def denoise(pair: Pair) -> None:
        with pab_compile.generation():
            for _ in pair.actual.steps():
                await asyncio.sleep(0)

    async def denoise_all() -> None:
        await asyncio.gather(*(denoise(pair) for pair in pairs))

    asyncio.run(denoise_all())
    for pair in pairs:
        pair.check()


def test_a_scope_inside_a_generation(
    model: LatteTransformer3DModel, compiled: Callable[..., Any]
) -> None:
    timesteps = ddim_timesteps(NUM_STEPS)
    outer, inner = pairs_of(model, compiled, timesteps=timesteps)
    steps = outer.actual.steps()
    advance(steps, 5)
    with pab_compile.generation():
        inner.run()
    for _ in steps:
        pass
    outer.check()


def test_a_scope_in_a_context_that_is_left_and_entered_again(
    model: LatteTransformer3DModel, compiled: Callable[..., Any]
) -> None:
    timesteps = ddim_timesteps(NUM_STEPS)
    pairs = pairs_of(model, compiled, timesteps=timesteps)
    contexts = [contextvars.copy_context() for _ in pairs]
    scopes = [pab_compile.generation() for _ in pairs]
    running = [pair.actual.steps() for pair in pairs]
    for context, scope in zip(contexts, scopes, strict=True):
        context.run(scope.__enter__)
    for _ in range(NUM_STEPS):
        for context, steps in zip(contexts, running, strict=True):
            context.run(next, steps)
    for context, scope in zip(contexts, scopes, strict=True):
        context.run(scope.__exit__, None, None, None)
    for pair in pairs:
        pair.check()


@pytest.mark.sample("True")
@pytest.mark.parametrize("warm", [False, True])
def test_threads(model: LatteTransformer3DModel, compiled: Callable[..., Any], warm: bool) -> None:
    timesteps = ddim_timesteps(NUM_STEPS)
    torch._dynamo.reset()  # what earlier tests compiled
    if warm:
        Pair(model, compiled, timesteps=timesteps).run()
    pairs = pairs_of(model, compiled, 3, timesteps=timesteps)
    failures: list[BaseException] = []
    start = threading.Barrier(len(pairs))

    def denoise(pair: Pair) -> None:
        try:
            start.wait(60)
            pair.actual.run()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=denoise, args=(pair,)) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    for pair in pairs:
        pair.check()


@pytest.mark.long
def test_one_thread_compiles_while_another_one_runs(
    model: LatteTransformer3DModel, compiled: Callable[..., Any]
) -> None:
    Pair(model, compiled).run()
    deep = tiny_latte(depth=2)
    compiling = Pair(deep, compiled_pab(deep, **RULE.options()))
    thread = threading.Thread(target=compiling.actual.run)
    thread.start()
    seed = 0
    while thread.is_alive():
        seed += 1
        pair = Pair(model, compiled, latents=draw_latents(seed))
        pair.actual.run()
        pair.check_nothing_foreign()  # Dynamo may drop its code meanwhile: then a step computes
    thread.join()
    assert seed > 1
    compiling.check()


# The clock in the user's hands.


def stepped(call: ModelCall, lanes: bool) -> ModelCall:
    """A call inside ``pab_compile.step``, with a timestep that tells nothing by where it lies."""

    def told(
        latents: torch.Tensor, given: torch.Tensor, prompt: torch.Tensor, now: Moment
    ) -> torch.Tensor:
        with pab_compile.step(now.step, now.num_steps, now.lane if lanes else None):
            return call(latents, given.clone(), prompt, now)

    return told


@pytest.mark.sample("False")
@pytest.mark.parametrize("lanes", [False, True])
def test_explicit_steps(model: LatteTransformer3DModel, lanes: bool) -> None:
    rule = {**RULE.options(), "window": (0.15, 0.8)}
    compiled = compiled_pab(model, **rule)
    for seed in (1, 2):
        pair = Pair(model, compiled, latents=draw_latents(seed), guidance="two calls")
        pair.actual.call = stepped(pair.actual.call, lanes)
        pair.run()
    assert pab_compile.stats(compiled).lanes == 2  # type: ignore[arg-type]


def test_explicit_lanes_of_equal_prompts(model: LatteTransformer3DModel) -> None:
    rule = {**RULE.options(), "window": (0.15, 0.8)}
    compiled = compiled_pab(model, **rule)
    timesteps = ddim_timesteps(NUM_STEPS)
    pairs = pairs_of(model, compiled, timesteps=timesteps)
    for index, pair in enumerate(pairs):
        call = calls_of(compiled)

        def named(
            latents: torch.Tensor,
            given: torch.Tensor,
            prompt: torch.Tensor,
            now: Moment,
            lane: str = f"video {index}",
            call: ModelCall = call,
        ) -> torch.Tensor:
            with pab_compile.step(now.step, now.num_steps, lane):
                return call(latents, given, prompt, now)

        pair.actual.call = named
    alternate(pairs, burst=1)
    for pair in pairs:
        pair.check()


def test_stated_timesteps(model: LatteTransformer3DModel, compiled: Callable[..., Any]) -> None:
    timesteps = ddim_timesteps(NUM_STEPS)
    for given in (timesteps, timesteps.tolist()):
        pair = Pair(model, compiled, timesteps=timesteps, by_value=True)
        with pab_compile.generation(timesteps=given):
            pair.run()


def test_stated_timesteps_make_fractions_exact(model: LatteTransformer3DModel) -> None:
    compiled = compiled_pab(model, **{**RULE.options(), "window": (0.15, 0.8)})
    pair = Pair(model, compiled, by_value=True)
    with pab_compile.generation(timesteps=pair.actual.timesteps):
        pair.run()


def test_stated_steps_with_stated_timesteps(
    model: LatteTransformer3DModel, compiled: Callable[..., Any]
) -> None:
    pair = Pair(model, compiled)
    pair.actual.call = stepped(pair.actual.call, lanes=True)
    with pab_compile.generation(timesteps=pair.actual.timesteps):
        pair.run()


def test_a_loop_in_bursts_of_explicit_steps_is_not_mixed(model: LatteTransformer3DModel) -> None:
    compiled = compiled_pab(model, **{**RULE.options(), "window": (0.15, 0.8)})
    pairs = pairs_of(model, compiled)
    for pair in pairs:
        pair.actual.call = stepped(pair.actual.call, lanes=True)
    alternate(pairs, burst=3)
    for pair in pairs:
        pair.check_nothing_foreign()


def test_loops_are_what_they_seem(model: LatteTransformer3DModel) -> None:
    """The helpers of this file: turns really alternate."""
    order: list[str] = []

    def call(name: str) -> ModelCall:
        def named(latents: torch.Tensor, *_: Any) -> torch.Tensor:
            order.append(name)
            return latents

        return named

    pairs = [Pair(model, model), Pair(model, model)]
    for name, pair in zip("ab", pairs, strict=True):
        pair.actual = Loop(call(name), ddim_timesteps(4))
    alternate(pairs, burst=2, lead=1)
    assert "".join(order) == "aaabbabb"
