"""Equal to eager where nothing is reused, to the oracle and to diffusers' hooks where it is."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import (
    LatteTransformer3DModel,
    PyramidAttentionBroadcastConfig,
    apply_pyramid_attention_broadcast,
)

import pab_compile
from helpers.latte import (
    Loop,
    ModelCall,
    Moment,
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

EVERY_STEP = Rule({"spatial": 1, "temporal": 1, "cross": 1, "mlp": 1})
EVERY_THIRD = {"spatial": 3, "temporal": 3, "cross": 3, "mlp": 3}


@pytest.fixture(scope="module")
def model() -> LatteTransformer3DModel:
    return tiny_latte(depth=1)


def test_the_oracle_without_reuse_is_eager(model: LatteTransformer3DModel) -> None:
    timesteps = ddim_timesteps(4)
    eager = Loop(calls_of(model), timesteps).run()
    for cut in ("attention", "gated"):
        assert torch.equal(Loop(Oracle(model, EVERY_STEP, cut), timesteps).run(), eager)


@pytest.mark.sample("gated")
@pytest.mark.parametrize("cut", ["attention", "gated"])
def test_ranges_of_one_give_eager_bit_for_bit(model: LatteTransformer3DModel, cut: str) -> None:
    timesteps = ddim_timesteps(4)
    compiled = compiled_pab(model, cut=cut, **EVERY_STEP.options())
    actual = Loop(calls_of(compiled), timesteps, guidance="batched").run()
    assert torch.equal(actual, Loop(calls_of(model), timesteps, guidance="batched").run())


@pytest.mark.long
def test_seams_are_cut_only_where_something_may_be_reused(model: LatteTransformer3DModel) -> None:
    timesteps = ddim_timesteps(4)
    pieces = {}
    for name, ranges in {"none": {}, "cross": {"cross": 2}}.items():
        compiled = compiled_pab(model, ranges={**dict.fromkeys(EVERY_STEP.ranges, 1), **ranges})
        Loop(calls_of(compiled), timesteps, guidance="batched").run()
        stats = pab_compile.stats(compiled)  # type: ignore[arg-type]
        assert stats.computed_steps["spatial"] == stats.computed_steps["temporal"] == 4
        assert stats.patterns[0] == "CCC"
        pieces[name] = stats.num_pieces
    assert pieces["none"] == 1
    assert pieces["cross"] > 1


@pytest.mark.slow
def test_with_inductor_ranges_of_one_give_what_stock_compile_gives() -> None:
    model, timesteps = tiny_latte(depth=1), ddim_timesteps(4)
    stock = Loop(calls_of(torch.compile(model)), timesteps).run()
    torch._dynamo.reset()
    compiled = compiled_pab(model, inner="inductor", **EVERY_STEP.options())
    assert_same(Loop(calls_of(compiled), timesteps).run(), stock, 1e-5)


@pytest.mark.long
@pytest.mark.slow
def test_with_inductor_reuse_equals_the_oracle() -> None:
    """A line through two outputs; ``test_compile_cache`` repeats outputs with Inductor."""
    rule = Rule(EVERY_THIRD, predict=1)
    model, timesteps = tiny_latte(depth=1), ddim_timesteps(12)
    compiled = compiled_pab(model, inner="inductor", **rule.options())
    expected = Loop(Oracle(model, rule), timesteps).run()
    assert_different(expected, Loop(calls_of(model), timesteps).run())
    assert_same(Loop(calls_of(compiled), timesteps).run(), expected, 1e-4)


@pytest.mark.sample("attention-2-12-rule0", "gated-1-20-rule3")
@pytest.mark.parametrize(
    ("cut", "depth", "num_steps", "rule"),
    [
        ("attention", 2, 12, Rule()),
        ("gated", 2, 12, Rule()),
        ("attention", 1, 20, Rule({"spatial": 3, "temporal": 5, "cross": 7})),
        ("gated", 1, 20, Rule({"spatial": 5, "temporal": 7, "cross": 9}, (100, 800))),
        ("attention", 1, 9, Rule({"spatial": 2, "temporal": 3, "cross": 6}, (100, 800))),
        ("gated", 1, 9, Rule(EVERY_THIRD, (0.0, 1.0))),
        ("attention", 1, 12, Rule(EVERY_THIRD, predict=1)),
        ("gated", 2, 12, Rule(EVERY_THIRD, predict=1)),
        ("attention", 1, 15, Rule({"cross": 4, "mlp": 2}, (0.0, 1.0), {"mlp": 1})),
        ("gated", 1, 15, Rule({"temporal": 4, "mlp": 3}, (200, 900), {"temporal": 1})),
        ("attention", 1, 12, Rule({"spatial": 20, "temporal": 2, "cross": 20}, (0.0, 1.0))),
    ],
)
def test_reuse_equals_the_oracle(cut: str, depth: int, num_steps: int, rule: Rule) -> None:
    model = tiny_latte(depth)
    timesteps = ddim_timesteps(num_steps)
    oracle = Oracle(model, rule, cut)
    expected = Loop(oracle, timesteps, guidance="batched").run()
    assert_different(expected, Loop(calls_of(model), timesteps, guidance="batched").run())

    compiled = compiled_pab(model, cut=cut, **rule.options())
    assert_same(Loop(calls_of(compiled), timesteps, guidance="batched").run(), expected)
    stats = pab_compile.stats(compiled)
    reused = {kind: count for kind, count in oracle.reused().items() if kind in stats.kinds}
    assert stats.reused == reused
    assert sum(reused.values()) == sum(oracle.reused().values())


def test_the_cuts_differ_where_sites_reuse(model: LatteTransformer3DModel) -> None:
    timesteps = ddim_timesteps(12)
    outputs = [Loop(Oracle(model, Rule(), cut), timesteps).run() for cut in ("attention", "gated")]
    assert_different(*outputs)


def test_the_attention_cut_equals_the_hooks_of_diffusers(model: LatteTransformer3DModel) -> None:
    hooked = copy.deepcopy(model)
    current = [0.0]
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        temporal_attention_block_skip_range=3,
        cross_attention_block_skip_range=6,
        spatial_attention_block_identifiers=("^transformer_blocks",),
        temporal_attention_block_identifiers=("^temporal_transformer_blocks",),
        cross_attention_block_identifiers=("^transformer_blocks",),
        current_timestep_callback=lambda: current[0],  # type: ignore[arg-type,return-value]
    )
    apply_pyramid_attention_broadcast(hooked, config)

    def call(
        latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor, moment: Moment
    ) -> torch.Tensor:
        current[0] = moment.timestep
        return calls_of(hooked)(latents, timestep, prompt, moment)

    timesteps = ddim_timesteps(20)
    expected = Loop(call, timesteps, guidance="batched").run()
    assert_different(expected, Loop(calls_of(model), timesteps, guidance="batched").run())
    compiled = compiled_pab(model, ranges="latte")
    assert_same(Loop(calls_of(compiled), timesteps, guidance="batched").run(), expected)


def test_compiling_in_place_is_the_same_as_wrapping(model: LatteTransformer3DModel) -> None:
    timesteps = ddim_timesteps(12)
    oracle = Oracle(model)
    expected = Loop(oracle, timesteps).run()
    in_place = copy.deepcopy(model)
    in_place.compile(backend="pab", options={"inner": "eager"})
    assert_same(Loop(calls_of(in_place), timesteps).run(), expected)
    reused = pab_compile.stats(in_place).reused
    assert reused == {kind: oracle.reused()[kind] for kind in ("spatial", "temporal", "cross")}


@pytest.mark.long
def test_one_full_graph_suffices(model: LatteTransformer3DModel) -> None:
    timesteps = ddim_timesteps(12)
    options = {"inner": "eager"}
    compiled = torch.compile(model, backend="pab", fullgraph=True, options=options)
    actual = Loop(calls_of(compiled), timesteps).run()
    assert_same(actual, Loop(Oracle(model), timesteps).run())


@pytest.mark.sample("1")
@pytest.mark.parametrize("predict", [0, 1])
def test_bfloat16_equals_the_oracle_in_bfloat16(predict: int) -> None:
    model = tiny_latte(depth=1).to(torch.bfloat16)
    rule = Rule(EVERY_THIRD, predict=predict)
    timesteps = ddim_timesteps(12)

    def run(call: ModelCall) -> torch.Tensor:
        latents, prompt = (t.to(torch.bfloat16) for t in (draw_latents(), draw_prompt()))
        return Loop(call, timesteps, latents, prompt).run()

    expected = run(Oracle(model, rule))
    assert expected.dtype == torch.bfloat16
    actual = run(calls_of(compiled_pab(model, **rule.options())))
    assert_same(actual, expected, 0.02 if predict else 1e-5)
