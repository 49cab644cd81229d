"""Guidance by two calls: lanes are never mixed, whatever the pipeline says, whenever it stops."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
import torch

import pab_compile
from helpers.latte import assert_different, assert_same

from .catalogue import CASES
from .observe import NUM_STEPS, OPTIONS, by_steps
from .oracle import Oracle

CASE = CASES["Wan"]
SCALE = 5.0


def interval(low: int, high: int, end_step: Callable[..., Any]) -> Callable[..., Any]:
    """A callback that guides outside of ``[low, high)`` only, as guidance intervals do."""

    def ended(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> Any:
        pipe._guidance_scale = 1.0 if low <= step + 1 < high else SCALE
        return end_step(pipe, step, timestep, tensors)

    return ended


def generations(low: int, high: int, **arguments: Any) -> tuple[Any, Oracle, list[torch.Tensor]]:
    """The compiled transformer, the oracle, and latents: compiled, by hooks, in eager mode."""
    given = {"guidance_scale": SCALE, **arguments}
    hooked, eager, pipe = CASE.build(), CASE.build(), CASE.build()
    oracle = Oracle(hooked.transformer, CASE.dit, by_steps(CASE))
    pipe.transformer = torch.compile(pipe.transformer, backend="pab", options=OPTIONS)
    ends = {pipe: lambda *args: args[-1], hooked: oracle.end_step, eager: lambda *args: args[-1]}
    found = [
        CASE.generate(each, NUM_STEPS, callback_on_step_end=interval(low, high, end), **given)
        for each, end in ends.items()
    ]
    return pipe.transformer, oracle, found


@pytest.mark.sample("3-6-True")
@pytest.mark.parametrize("is_used", [False, True])
@pytest.mark.parametrize(("low", "high"), [(5, NUM_STEPS), (3, 6)])
def test_guidance_that_stops_or_pauses_half_way(low: int, high: int, is_used: bool) -> None:
    context = lambda *_, **__: nullcontext()  # noqa: E731
    plain = mock.patch.object(type(CASE.build().transformer), "cache_context", context)
    with nullcontext() if is_used else plain:
        transformer, oracle, (actual, expected, eager) = generations(low, high)
    assert_different(expected, eager)
    assert_same(actual, expected)
    stats = pab_compile.stats(transformer)
    assert {kind: n for kind, n in stats.reused.items() if n} == dict(oracle.reused)
    assert (stats.lanes, stats.notes) == (2, ())
    assert stats.calls == 2 * NUM_STEPS - (high - low)


@pytest.mark.long
def test_prompts_of_equal_value_do_no_harm() -> None:
    prompt = CASE.arguments()["prompt_embeds"]
    _, _, (actual, expected, eager) = generations(
        4, NUM_STEPS, negative_prompt_embeds=prompt.clone()
    )
    assert_different(expected, eager)
    assert_same(actual, expected)
