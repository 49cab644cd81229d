"""What users call: explain, stats, reset, and every kind of option that a model can be given."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LatteTransformer3DModel
from torch._subclasses.fake_tensor import FakeTensorMode

import helpers.eager_code as eager_code
import pab_compile
from helpers.eager_code import RANGES, as_oracle, calls, make
from helpers.latte import (
    NUM_FRAMES,
    Loop,
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
from pab_compile.plans.plan import COMPUTE
from pab_compile.plans.plan_file import plan_to_json
from pab_compile.plans.presets import PRESETS

NUM_STEPS = 12
ATTENTION = {"spatial": 2, "temporal": 2, "cross": 2}
ANYWHERE = Moment(0, 1, 0.0, "")


@pytest.fixture(scope="module")
def model() -> LatteTransformer3DModel:
    return tiny_latte()


@pytest.fixture(scope="module")
def small() -> LatteTransformer3DModel:
    return tiny_latte(depth=1)


def inputs(batch: int = 1) -> dict[str, torch.Tensor]:
    return {
        "hidden_states": draw_latents(batch=batch),
        "timestep": torch.tensor([500]).expand(batch),
        "encoder_hidden_states": draw_prompt(batch=batch),
    }


def run(model: Callable[..., Any], **loop: Any) -> torch.Tensor:
    return Loop(calls_of(model), ddim_timesteps(NUM_STEPS), **loop).run()


# explain


@pytest.fixture(scope="module")
def found(model: LatteTransformer3DModel) -> pab_compile.Explanation:
    return pab_compile.explain(model, **inputs())


def test_explain_names_every_site(found: pab_compile.Explanation) -> None:
    assert found.counts() == ATTENTION
    assert [site.kind for site in found.sites].count("mlp") == 4
    assert len({site.name for site in found.sites}) == len(found.sites) == 10
    assert (found.clock, found.latents, found.notes) == ("timestep", "hidden_states", ())
    assert found.total_flops > sum(site.flops for site in found.sites) > 0
    for site in found.sites:
        where = site.name
        assert site.reason, where
        assert (site.mechanism == "mlp") == (site.kind == "mlp"), where
        assert site.flops > 0, where
        assert site.cache_bytes == (4 * NUM_FRAMES * 16 * 16 if site.kind != "mlp" else 0), where
        assert site.range == {"spatial": 2, "temporal": 4, "cross": 6}.get(site.kind, 1), where
    modules = {kind: [s.module for s in found.sites if s.kind == kind] for kind in ATTENTION}
    assert modules == {
        "spatial": ["transformer_blocks.0.attn1", "transformer_blocks.1.attn1"],
        "temporal": ["temporal_transformer_blocks.0.attn1", "temporal_transformer_blocks.1.attn1"],
        "cross": ["transformer_blocks.0.attn2", "transformer_blocks.1.attn2"],
    }


def test_explain_prints_a_table_and_json(found: pab_compile.Explanation) -> None:
    fields = json.loads(found.to_json())
    assert set(fields) == {field.name for field in dataclasses.fields(found)}
    assert [site["name"] for site in fields["sites"]] == [site.name for site in found.sites]
    lines = str(found).splitlines()
    assert "2 spatial, 2 temporal, 2 cross" in lines[0]
    assert "caches 24.0 KiB per call" in lines[1]
    assert max(map(len, lines)) <= 80
    assert sum("2 like" in line and "spatial" in line for line in lines) == 1  # equal sites
    [total] = [line.split() for line in lines if line.startswith(" all ")]
    assert total[1] == "24.00" == f"{sum(site.cache_bytes for site in found.sites) / 1024:.2f}"
    always = lines.index("Computed at every step:")
    assert "2 like transformer_blocks.0.ff" in lines[always + 1]


def content(found: pab_compile.Explanation) -> dict[str, Any]:
    """What does not depend on the machine, nor on how a device spells an op."""
    fields = json.loads(found.to_json())
    return {key: fields[key] for key in fields if key not in ("seconds", "num_nodes")}


@pytest.fixture(scope="module")
def of_two_rows(small: LatteTransformer3DModel) -> dict[str, Any]:
    return content(pab_compile.explain(small, **inputs(batch=2)))


@pytest.mark.long
def test_explain_on_meta_and_fake_tensors_says_the_same(
    small: LatteTransformer3DModel, of_two_rows: dict[str, Any]
) -> None:
    on_meta = {name: tensor.to("meta") for name, tensor in inputs(batch=2).items()}
    meta_model = copy.deepcopy(small).to("meta")
    assert content(pab_compile.explain(meta_model, **on_meta)) == of_two_rows
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake_model = LatteTransformer3DModel(**small.config).eval().requires_grad_(False)
        fake = inputs(batch=2)
        assert content(pab_compile.explain(fake_model, **fake)) == of_two_rows


@pytest.mark.long
def test_explain_takes_arguments_by_position(
    small: LatteTransformer3DModel, of_two_rows: dict[str, Any]
) -> None:
    given = inputs(batch=2)
    by_position = pab_compile.explain(
        small, given["hidden_states"], given["timestep"], given["encoder_hidden_states"]
    )
    assert content(by_position) == of_two_rows


@pytest.mark.sample("True")
@pytest.mark.parametrize("in_place", [False, True])
def test_explain_takes_the_options_of_a_compiled_model_and_compiles_nothing(
    small: LatteTransformer3DModel, in_place: bool
) -> None:
    def inner(*_: Any) -> Any:
        raise AssertionError("explain ran the inner compiler")

    given = {"ranges": {"spatial": 3, "mlp": 5}, "inner": inner}
    compiled: Any = copy.deepcopy(small)
    if in_place:
        compiled.compile(backend="pab", options=given)
    else:
        compiled = torch.compile(compiled, backend="pab", options=given)
    found = pab_compile.explain(compiled, **inputs())
    assert {site.kind: site.range for site in found.sites} == {
        **{"spatial": 3, "temporal": 1, "cross": 1, "mlp": 5}
    }
    found = pab_compile.explain(compiled, **inputs(), options={"ranges": {"cross": 7}})
    assert {site.range for site in found.sites if site.kind == "cross"} == {7}
    assert {site.range for site in found.sites if site.kind != "cross"} == {1}


def test_explain_without_inputs_says_what_was_compiled(small: LatteTransformer3DModel) -> None:
    compiled = compiled_pab(small)
    with pytest.raises(pab_compile.PabError, match="has not completed a step"):
        pab_compile.explain(compiled)
    compiled(**inputs())
    expected = content(pab_compile.explain(compiled, **inputs()))
    assert content(pab_compile.explain(compiled)) == {**expected, "num_calls": 1}
    with pytest.raises(pab_compile.PabError, match="Nothing to explain without inputs"):
        pab_compile.explain(tiny_latte(depth=1))


@pytest.mark.long
def test_explain_half_way_changes_nothing(small: LatteTransformer3DModel) -> None:
    expected = Loop(Oracle(small), ddim_timesteps(NUM_STEPS)).run()
    compiled = compiled_pab(small)
    loop = Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in loop.steps():
            if step == 6:
                assert pab_compile.explain(compiled, **inputs()).counts()["spatial"] == 1
    assert_same(torch.stack(loop.predictions), expected)


@pytest.mark.long
@pytest.mark.slow
def test_explain_a_seventh_of_latte_at_its_real_size_on_meta() -> None:
    """A seventh of its 28 pairs of blocks, which are alike, in a seventh of three minutes."""
    start = time.process_time()
    with torch.device("meta"):
        latte = LatteTransformer3DModel(
            num_layers=4,
            num_attention_heads=16,
            attention_head_dim=72,
            in_channels=4,
            out_channels=8,
            sample_size=64,
            patch_size=2,
            video_length=16,
            caption_channels=4096,
            cross_attention_dim=1152,
            attention_bias=True,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
        ).to(torch.bfloat16)
        found = pab_compile.explain(
            latte.eval(),
            torch.empty(2, 4, 16, 64, 64, dtype=torch.bfloat16),
            timestep=torch.tensor([500]).expand(2),
            encoder_hidden_states=torch.empty(2, 120, 4096, dtype=torch.bfloat16),
        )
    assert time.process_time() - start < 180 / 7
    assert found.counts() == {"spatial": 4, "temporal": 4, "cross": 4}
    cached = [site.cache_bytes for site in found.sites if site.kind != "mlp"]
    assert cached == [2 * 16 * 1024 * 1152 * 2] * 12
    assert round(7 * sum(cached) / 2**30, 3) == 5.906
    assert "4 spatial, 4 temporal, 4 cross" in str(found)
    assert "caches 864.0 MiB per call" in str(found)


# stats and reset


def test_stats_are_of_the_last_generation_and_survive_reset() -> None:
    small = tiny_latte(depth=1, seed=11)  # of its own: statistics outlive the test
    compiled: Any = compiled_pab(small)
    with pytest.raises(pab_compile.PabError, match="has not completed a step"):
        pab_compile.stats(compiled)
    Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS)).run()
    first = pab_compile.stats(compiled)
    assert (first.steps, first.lanes) == (NUM_STEPS, 1)
    assert pab_compile.stats(small) == first  # the module that was compiled will do
    Loop(calls_of(compiled), ddim_timesteps(8)).run()
    second = pab_compile.stats(compiled)
    assert second.steps == 8
    assert first.steps == NUM_STEPS
    pab_compile.reset()
    assert pab_compile.stats(compiled) == second
    assert str(second).startswith("8 steps, 8 calls: 42% of the runs of sites were reused.")


@pytest.mark.long
def test_reset_concerns_the_current_scope_only(small: LatteTransformer3DModel) -> None:
    compiled = compiled_pab(small)
    expected = Loop(Oracle(small), ddim_timesteps(NUM_STEPS)).run()
    loop = Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS))
    for step in loop.steps():
        if step == 5:
            with pab_compile.generation():
                pab_compile.reset()
    assert_same(torch.stack(loop.predictions), expected)


# Which model, which compilation


# Options that choose a plan or a compiler


class AskSites(Rule):
    """The rule of ``ask_sites``, as the oracle understands it."""

    def reuses(self, kind: str, step: int, moment: Moment) -> bool:
        return kind in ("temporal", "mlp") and step % 3 != 0 and moment.timestep < 800


def ask_sites(site: Any, step: int, num_steps: int | None, timestep: float | None) -> int | None:
    """A user's plan."""
    assert num_steps == NUM_STEPS
    assert timestep is not None
    assert site.name
    return 0 if site.kind in ("temporal", "mlp") and step % 3 and timestep < 800 else None


def test_a_function_as_plan(small: LatteTransformer3DModel) -> None:
    oracle = Oracle(small, AskSites())
    expected = Loop(oracle, ddim_timesteps(NUM_STEPS)).run()
    assert_different(expected, run(small))
    compiled: Any = compiled_pab(small, plan=ask_sites)
    assert_same(run(compiled), expected)
    assert pab_compile.stats(compiled).reused == oracle.reused()


@pytest.mark.long
def test_a_file_as_plan(small: LatteTransformer3DModel, tmp_path: Path) -> None:
    entries = [
        0 if step % 3 and timestep < 800 else COMPUTE
        for step, timestep in enumerate(ddim_timesteps(NUM_STEPS).tolist())
    ]
    sites = pab_compile.explain(small, **inputs()).sites
    rows = {site.name: entries for site in sites if site.kind in ("temporal", "mlp")}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan_to_json(rows, NUM_STEPS)))
    expected = Loop(Oracle(small, AskSites()), ddim_timesteps(NUM_STEPS)).run()
    assert_same(run(compiled_pab(small, plan=path)), expected)


@pytest.mark.sample("linear5")
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_its_rule(small: LatteTransformer3DModel, name: str) -> None:
    preset = PRESETS[name]
    rule = Rule(preset.ranges, preset.window, preset.predict)
    timesteps = ddim_timesteps(20)
    oracle = Oracle(small, rule, preset.cut)
    expected = Loop(oracle, timesteps).run()
    compiled: Any = compiled_pab(small, ranges=name)
    assert_same(Loop(calls_of(compiled), timesteps).run(), expected)
    stats = pab_compile.stats(compiled)
    assert sum(oracle.reused().values()) == sum(stats.reused.values()) > 0
    assert (stats.peak_cache_bytes < max(oracle.held_bytes().values())) == preset.coalesce


def test_where_dynamo_gives_up_compiling_the_error_says_so(small: LatteTransformer3DModel) -> None:
    with torch._dynamo.config.patch(recompile_limit=1):
        first, second = (compiled_pab(small, ranges={"spatial": n}) for n in (2, 3))
        expected = small(**inputs()).sample
        assert_same(first(**inputs()).sample, expected)
        assert_same(second(**inputs()).sample, expected)
    assert pab_compile.stats(first).steps == 1  # type: ignore[arg-type]
    with pytest.raises(pab_compile.PabError, match=r"raise torch\.compiler\.config"):
        pab_compile.stats(second)  # type: ignore[arg-type]


def test_statistics_say_that_further_sizes_run_uncompiled() -> None:
    model = make("plain")
    compiled: Any = torch.compile(
        model, backend="pab", dynamic=False, options={"ranges": RANGES, "inner": "eager"}
    )
    given = next(calls())
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=2):
        compiled(*given)
        assert not any("Dynamo" in note for note in pab_compile.stats(compiled).notes)
        for rows in (3, 4):
            compiled(*(torch.cat([x, x])[:rows] for x in given))
        (note,) = (n for n in pab_compile.stats(compiled).notes if n.startswith("Dynamo keeps 2"))
    assert "uncompiled" in note


def test_any_registered_backend_compiles_the_pieces() -> None:
    model = make("plain")
    reusing: Any = eager_code.compiled(model, RANGES, inner="aot_eager")
    with torch.no_grad():
        for step, given in enumerate(calls()):
            with as_oracle(model, step):
                expected = model(*given)
            assert_same(reusing(*given), expected)
    assert pab_compile.stats(reusing).reused["full"] > 0


@pytest.mark.long
@pytest.mark.slow
def test_a_mode_is_accepted_and_right(small: LatteTransformer3DModel) -> None:
    """The one that also changes how outputs are cached; any other is handed over alike."""
    expected = Loop(Oracle(small), ddim_timesteps(NUM_STEPS)).run()
    assert_different(expected, run(small))
    assert_same(run(torch.compile(small, backend="pab", mode="reduce-overhead")), expected, 1e-4)


def test_explain_of_a_second_size_meets_no_symbols(small: LatteTransformer3DModel) -> None:
    class Reversed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = small

        def forward(
            self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
        ) -> torch.Tensor:
            first, last = prompt.split([prompt.shape[1] - 2, 2], dim=1)
            return calls_of(self.model)(latents, timestep, torch.cat([last, first], 1), ANYWHERE)

    for prompt in (draw_prompt(), draw_prompt()[:, :4]):
        explanation = pab_compile.explain(Reversed(), draw_latents(), torch.tensor([500]), prompt)
        assert explanation.counts() == {"spatial": 1, "temporal": 1, "cross": 1}
