"""A generation with little memory for its caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import LatteTransformer3DModel

import pab_compile
from helpers.latte import (
    Loop,
    assert_different,
    assert_same,
    calls_of,
    compiled_pab,
    ddim_timesteps,
    tiny_latte,
)
from helpers.oracle import Oracle, Rule

NUM_STEPS = 8
RANGES = {"spatial": 2, "temporal": 3, "cross": 4, "mlp": 2}
WHOLE = {"ranges": RANGES, "window": (0.0, 1.0)}
ENTRY = 4096  # bytes of what a site caches


def run(model: Callable[..., Any], guidance: Any) -> torch.Tensor:
    return Loop(calls_of(model), ddim_timesteps(NUM_STEPS), guidance=guidance).run()


def unlimited(model: LatteTransformer3DModel, guidance: Any) -> torch.Tensor:
    """What the rule gives where everything is cached."""
    oracle = Oracle(model, Rule(RANGES, (0.0, 1.0)))
    return Loop(oracle, ddim_timesteps(NUM_STEPS), guidance=guidance).run()


@pytest.mark.sample("two calls-2")
@pytest.mark.parametrize(("guidance", "lanes"), [("none", 1), ("two calls", 2)])
def test_what_does_not_fit_computes_and_the_rest_reuses(guidance: str, lanes: int) -> None:
    model, budget = tiny_latte(depth=1), 3 * lanes * ENTRY
    limited = compiled_pab(model, **WHOLE, cache_budget=budget)
    actual, stats = run(limited, guidance), pab_compile.stats(limited)
    assert stats.peak_cache_bytes == budget
    always = {kind for kind in RANGES if not stats.reused.get(kind)}
    assert always == {"spatial", "cross"}
    assert any(f"holds 3 of 5 sites for {lanes} call(s)" in note for note in stats.notes)

    def plan(site: Any, step: int, num_steps: int, timestep: float) -> int | None:
        every = 1 if site.kind in always else RANGES[site.kind]
        return 0 if step % every else None  # 0 repeats

    assert torch.equal(actual, run(compiled_pab(model, plan=plan), guidance))
    assert_different(actual, unlimited(model, guidance))


@pytest.mark.long
def test_a_budget_for_everything_changes_nothing() -> None:
    model = tiny_latte(depth=1)
    limited = compiled_pab(model, **WHOLE, cache_budget=5 * ENTRY)
    actual, stats = run(limited, "none"), pab_compile.stats(limited)
    assert (stats.peak_cache_bytes, stats.notes) == (5 * ENTRY, ())
    assert_same(actual, unlimited(model, "none"))


@pytest.mark.sample("torch.bfloat16")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_room_for_any_site_it_is_eager(dtype: torch.dtype) -> None:
    model = tiny_latte(depth=1).to(dtype)
    limited = compiled_pab(model, **WHOLE, cache_budget=1)

    def cast(call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x, timestep, encoder_hidden_states, **more: call(
            x.to(dtype),
            timestep=timestep,
            encoder_hidden_states=encoder_hidden_states.to(dtype),
            **more,
        )

    assert torch.equal(run(cast(limited), "none"), run(cast(model), "none"))
    assert pab_compile.stats(limited).peak_cache_bytes == 0


@pytest.mark.long
def test_predictions_count_all_that_they_keep() -> None:
    model, budget = tiny_latte(depth=1), 2 * ENTRY
    limited = compiled_pab(model, ranges="linear3", cache_budget=budget)
    run(limited, "none")
    stats = pab_compile.stats(limited)
    assert stats.peak_cache_bytes == budget
    assert stats.reused["mlp"]
    narrow = compiled_pab(model, ranges="linear3", cache_budget=budget - 1)
    run(narrow, "none")
    assert not any(pab_compile.stats(narrow).reused.values())


def test_explain_says_what_a_budget_leaves_out() -> None:
    model = tiny_latte(depth=1)
    loop = Loop(calls_of(model), ddim_timesteps(NUM_STEPS))
    found = pab_compile.explain(
        model,
        loop.latents,
        timestep=torch.tensor([500]),
        encoder_hidden_states=loop.prompt,
        options={**WHOLE, "cache_budget": 5 * ENTRY},
    )
    assert [note for note in found.notes if "cache budget" in note] == [
        "the cache budget of 0.0 MiB holds all 5 sites for 1 call(s) per step",
        "the cache budget of 0.0 MiB holds 2 of 5 sites for 2 call(s) per step; 3 compute at every "
        "step: transformer_blocks.0.attn1, transformer_blocks.0.attn2, "
        "temporal_transformer_blocks.0.attn1",
    ]
