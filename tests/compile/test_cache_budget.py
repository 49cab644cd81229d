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
    model, limit = tiny_latte(depth=1), 3 * lanes * ENTRY
    limited = compiled_pab(model, **WHOLE, cache_budget=limit)
    actual, stats = run(limited, guidance), pab_compile.stats(limited)
    assert stats.peak_cache_bytes == limit
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
    model, limit = tiny_latte(depth=1), 2 * ENTRY
    limited = compiled_pab(model, ranges="linear3", cache_budget=limit)
    run(limited, "none")
    stats = pab_compile.stats(limited)
    assert stats.peak_cache_bytes == limit
    assert stats.reused["mlp"]
    narrow = compiled_pab(model, ranges="linear3", cache_budget=limit - 1)
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
    offer = "cache_dtype 'auto' or 'float8_e4m3' would hold 5 of 5 sites for 1 call per step, and"
    assert any(note.startswith(offer) for note in found.notes)


@pytest.mark.parametrize("lanes", [1, 2])
def test_auto_narrows_all_caches_only_where_the_budget_is_short(lanes: int) -> None:
    model, guidance = tiny_latte(depth=1), ("none", "two calls")[lanes - 1]
    options = {**WHOLE, "cache_budget": 5 * ENTRY}
    auto = compiled_pab(model, **options, cache_dtype="auto")
    actual, stats = run(auto, guidance), pab_compile.stats(auto)
    if lanes == 1:  # everything fits as it is
        assert_same(actual, unlimited(model, guidance))
        assert stats.notes == ()
        return
    narrow = compiled_pab(model, **WHOLE, cache_dtype="float8_e4m3")
    assert torch.equal(actual, run(narrow, guidance))
    assert_different(actual, unlimited(model, guidance))
    assert stats.peak_cache_bytes <= 5 * ENTRY
    assert any("holds all 5 sites in float8_e4m3 for 2 call(s)" in note for note in stats.notes)


def test_without_a_budget_half_of_the_free_memory_is_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    log = "pab_compile.compile.executor._log.info"
    monkeypatch.setattr(log, lambda words, *parts: said.append(words % parts))
    model, free = tiny_latte(depth=1), 2**40
    monkeypatch.setattr("pab_compile.plans.budget.free_bytes", lambda device: free)
    compiled = compiled_pab(model, **WHOLE)
    assert_same(run(compiled, "none"), unlimited(model, "none"))
    assert any("at most 512.00 GiB, 50% of what is free on cpu" in line for line in said)
    assert pab_compile.stats(compiled).peak_cache_bytes == 5 * ENTRY
    free = 6 * ENTRY  # of the next generation
    run(compiled, "none")
    stats = pab_compile.stats(compiled)
    assert stats.peak_cache_bytes == 3 * ENTRY
    assert any("holds 3 of 5 sites" in note for note in stats.notes)


def test_explain_says_what_the_default_budget_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_latte(depth=1)
    loop = Loop(calls_of(model), ddim_timesteps(NUM_STEPS))

    def notes(free: int | None) -> list[str]:
        for place in ("plans.budget", "inspect.explain"):
            monkeypatch.setattr(f"pab_compile.{place}.free_bytes", lambda device: free)
        inputs = {"timestep": torch.tensor([500]), "encoder_hidden_states": loop.prompt}
        found = pab_compile.explain(model, loop.latents, **inputs, options=WHOLE)
        return [note for note in found.notes if "budget" in note]

    assert notes(2**40) == notes(None) == []
    given, one, two = notes(6 * ENTRY)
    assert given.startswith("no cache_budget was given, so it is 50% of what is free")
    assert "3 of 5 sites for 1 call" in one
    assert "of 5 sites for 2 call" in two
