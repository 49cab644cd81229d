"""The examples' models under the backend: eager without reuse, the oracle with it."""

from __future__ import annotations

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, PNDMScheduler

import pab_compile
from helpers.latte import (
    Loop,
    assert_different,
    assert_same,
    compiled_pab,
    ddim_timesteps,
    draw_latents,
)

from .tiny import NAMES, RULES, Oracle, build, calls

# Sites of a block.
KINDS = {
    "open-sora": {"spatial": 1, "temporal": 1, "cross": 2},
    "open-sora-plan-1.1": {"spatial": 1, "temporal": 1, "cross": 1},
    "open-sora-plan-1.2": {"full": 1, "cross": 1},
}


@pytest.mark.sample("open-sora-plan-1.2")
@pytest.mark.parametrize("name", NAMES)
def test_without_ranges_it_is_eager_bit_for_bit(name: str) -> None:
    model, timesteps = build(name, depth=1), ddim_timesteps(3)
    compiled = torch.compile(
        model, backend="pab", fullgraph=True, options={"inner": "eager", "ranges": {}}
    )
    actual = Loop(calls(name, compiled), timesteps, guidance="batched").run()
    assert torch.equal(actual, Loop(calls(name, model), timesteps, guidance="batched").run())


@pytest.mark.sample("open-sora-gated")
@pytest.mark.parametrize("cut", ["gated", "attention"])
@pytest.mark.parametrize("name", NAMES)
def test_reuse_equals_the_oracle(name: str, cut: str) -> None:
    depth = {"gated": 2, "attention": 1}[cut]
    model, rule, timesteps = build(name, depth), RULES[name], ddim_timesteps(12)
    oracle = Oracle(name, model, rule, cut)
    expected = Loop(oracle, timesteps, guidance="batched").run()
    assert_different(expected, Loop(calls(name, model), timesteps, guidance="batched").run())
    compiled = compiled_pab(model, cut=cut, **rule.options())
    assert_same(Loop(calls(name, compiled), timesteps, guidance="batched").run(), expected)
    stats, reused = pab_compile.stats(compiled), oracle.reused()  # type: ignore[arg-type]
    assert stats.notes == ()
    assert stats.reused == {kind: count for kind, count in reused.items() if kind != "mlp"}
    sites = {kind: stats.computed[kind] + stats.reused[kind] for kind in stats.kinds}
    assert sites == {kind: 12 * depth * count for kind, count in KINDS[name].items()}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_reuse_equals_the_oracle_at_a_second_size(name: str) -> None:
    model, rule, timesteps = build(name, depth=1), RULES[name], ddim_timesteps(8)
    compiled = compiled_pab(model, cut="gated", **rule.options())
    for latents in (draw_latents(), draw_latents(size=6)[:, :, :3]):
        expected = Loop(Oracle(name, model, rule, "gated"), timesteps, latents).run()
        assert_different(expected, Loop(calls(name, model), timesteps, latents).run())
        assert_same(Loop(calls(name, compiled), timesteps, latents).run(), expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_without_reuse_is_eager(name: str) -> None:
    model, timesteps = build(name), ddim_timesteps(2)
    every = type(RULES[name])({})
    for cut in ("gated", "attention"):
        actual = Loop(Oracle(name, model, every, cut), timesteps).run()
        assert torch.equal(actual, Loop(calls(name, model), timesteps).run())


def pattern(timesteps: list[float], every: int, window: tuple[int, int]) -> str:
    """C where the rule computes, - where it reuses."""
    low, high = window
    return "".join(
        "C" if step % every == 0 or not low < timestep < high else "-"
        for step, timestep in enumerate(timesteps)
    )


@pytest.mark.long
@pytest.mark.parametrize("by_value", [False, True])
def test_steps_that_pndm_repeats_leave_the_next_generation_its_schedule(by_value: bool) -> None:
    name = "open-sora-plan-1.1"
    scheduler = PNDMScheduler()
    scheduler.set_timesteps(150)
    assert len(scheduler.timesteps) == 159
    scheduler.set_timesteps(24)
    values = scheduler.timesteps.tolist()
    assert len(values) == 33
    assert len(set(values)) < 33
    compiled = compiled_pab(build(name, depth=1), ranges="open-sora-plan", cut="gated")
    expected = {
        "spatial": pattern(values, 2, (100, 850)),
        "temporal": pattern(values, 4, (100, 850)),
        "cross": pattern(values, 6, (100, 850)),
    }
    for seed in range(3):
        scheduler.set_timesteps(24)
        loop = Loop(
            calls(name, compiled), scheduler.timesteps, draw_latents(seed), by_value=by_value
        )
        loop.update = lambda noise, t, x: scheduler.step(noise, t, x, return_dict=False)[0]
        loop.run()
        stats = pab_compile.stats(compiled)  # type: ignore[arg-type]
        assert stats.calls == stats.steps == 33
        assert stats.kinds == tuple(expected)
        found = {kind: "".join(p[i] for p in stats.patterns) for i, kind in enumerate(stats.kinds)}
        assert found == expected


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers
def test_the_preset_of_plan_covers_attention_over_the_whole_video() -> None:
    name = "open-sora-plan-1.2"
    scheduler = EulerAncestralDiscreteScheduler()
    scheduler.set_timesteps(100)
    compiled = compiled_pab(build(name, depth=1), ranges="open-sora-plan")
    Loop(calls(name, compiled), scheduler.timesteps).run()
    stats = pab_compile.stats(compiled)  # type: ignore[arg-type]
    values = scheduler.timesteps.tolist()
    assert stats.kinds == ("cross", "full")
    assert stats.computed_steps == {
        "cross": pattern(values, 6, (100, 850)).count("C"),
        "full": pattern(values, 2, (100, 850)).count("C"),
    }
    assert stats.computed_steps == {"cross": 37, "full": 62}
