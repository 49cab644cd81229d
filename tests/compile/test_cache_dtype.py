"""What is cached in a narrower dtype: values, bytes, and steps that compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import LatteTransformer3DModel

import pab_compile
from helpers.any_denoisers import ANY
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
from pab_compile import OptionError
from pab_compile.options import parse_options
from pab_compile.plans.cache_dtype import CACHE_DTYPES

NUM_STEPS = 8
RANGES = {"spatial": 2, "temporal": 3, "cross": 4, "mlp": 2}
TABLE = ddim_timesteps(NUM_STEPS)


@pytest.fixture(scope="module")
def model() -> LatteTransformer3DModel:
    return tiny_latte(depth=1)


def rounded(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a site keeps of an output, written anew."""

    def plain(output: torch.Tensor) -> torch.Tensor:
        return output.to(CACHE_DTYPES[name]).to(output.dtype)

    def scaled(output: torch.Tensor) -> torch.Tensor:
        scale = output.float().abs().max(dim=-1, keepdim=True).values / 448
        return ((output.float() / scale).to(torch.float8_e4m3fn).float() * scale).to(output.dtype)

    return scaled if name == "float8_e4m3" else plain


def run(model: Callable[..., Any], **more: Any) -> torch.Tensor:
    return Loop(calls_of(model), TABLE, **more).run()


@pytest.mark.sample("2-float8_e4m3-two calls", "0-bfloat16-none")
@pytest.mark.parametrize("guidance", ["none", "two calls"])
@pytest.mark.parametrize("name", CACHE_DTYPES)
@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_generation_equals_an_oracle_that_rounds(
    model: LatteTransformer3DModel, order: int, name: str, guidance: Any
) -> None:
    rule = Rule(RANGES, (0.0, 1.0), order)
    oracle = Oracle(model, rule, "gated")
    oracle.keep = rounded(name)
    expected = Loop(oracle, TABLE, guidance=guidance).run()
    exact = Loop(Oracle(model, rule, "gated"), TABLE, guidance=guidance).run()
    assert_different(expected, exact, 1e-4)
    compiled = compiled_pab(model, cut="gated", cache_dtype=name, **rule.options())
    assert_same(run(compiled, guidance=guidance), expected, 3e-5)


def test_in_bfloat16_a_repeat_equals_the_oracle_bit_for_bit(
    model: LatteTransformer3DModel,
) -> None:
    half, rule = tiny_latte(depth=1).to(torch.bfloat16), Rule(RANGES, (0.0, 1.0))
    given = {name: getattr(Loop(calls_of(model), TABLE), name) for name in ("latents", "prompt")}
    given = {name: x.to(torch.bfloat16) for name, x in given.items()}
    oracle = Oracle(half, rule)
    exact = Loop(oracle, TABLE, **given).run()
    oracle = Oracle(half, rule)
    oracle.keep = rounded("float8_e4m3")
    expected = Loop(oracle, TABLE, **given).run()
    assert not torch.equal(expected, exact)
    compiled = compiled_pab(half, cache_dtype="float8_e4m3", **rule.options())
    assert torch.equal(run(compiled, **given), expected)


@pytest.mark.sample("output-False")
@pytest.mark.parametrize(
    ("cut", "coalesce"), [("output", False), ("gated", True), ("attention", False)]
)
def test_steps_that_compute_are_unaffected(
    model: LatteTransformer3DModel, cut: str, coalesce: bool
) -> None:
    def plan(site: Any, step: int, *_: Any) -> int | None:
        return 0 if step == NUM_STEPS - 1 else None

    options = {"cut": cut, "coalesce": coalesce, "plan": plan}
    narrow = run(compiled_pab(model, cache_dtype="float8_e4m3", **options))
    exact = run(model)
    assert torch.equal(narrow[:-1], exact[:-1])
    assert_different(narrow[-1], run(compiled_pab(model, **options))[-1])
    if cut == "output":
        assert torch.equal(narrow[-1], rounded("float8_e4m3")(exact[-2]))


@pytest.mark.sample("float8_e4m3-0.1")
@pytest.mark.parametrize(("name", "error"), [("bfloat16", 0.01), ("float8_e4m3", 0.1)])
def test_sums_and_their_bytes(model: LatteTransformer3DModel, name: str, error: float) -> None:
    exact, narrow = (
        compiled_pab(model, ranges="linear2", **more) for more in ({}, {"cache_dtype": name})
    )
    expected, actual = run(exact), run(narrow)
    assert_different(actual, expected, 1e-5)
    assert_same(actual, expected, error)
    whole, stats = pab_compile.stats(exact), pab_compile.stats(narrow)
    assert stats.reused == whole.reused != {}
    # A row has 16 elements of 4 bytes.
    row = {"bfloat16": 32, "float8_e4m3": 20}[name]
    assert stats.peak_cache_bytes * 64 == whole.peak_cache_bytes * row
    assert pab_compile.explain(narrow).cache_bytes == stats.peak_cache_bytes


@pytest.mark.long
def test_preludes_stay_as_they_were(model: LatteTransformer3DModel) -> None:
    held = set()
    for name in (None, "float8_e4m3"):
        compiled = compiled_pab(model, ranges=RANGES, window=(0.0, 1.0), cache_dtype=name)
        run(compiled)
        held.add(pab_compile.stats(compiled).held_bytes)
    assert len(held) == 1
    assert held.pop() > 0


def test_a_budget_holds_more_that_is_narrow(model: LatteTransformer3DModel) -> None:
    options = {"ranges": RANGES, "window": (0.0, 1.0), "cache_budget": 5 * 4096 // 2}
    found = []
    for name in (None, torch.bfloat16):
        compiled = compiled_pab(model, **options, cache_dtype=name)
        run(compiled)
        stats = pab_compile.stats(compiled)
        found.append((stats.peak_cache_bytes, sum(bool(n) for n in stats.reused.values())))
        sites = pab_compile.explain(compiled).sites
        assert {site.cache_bytes for site in sites} == {2048 if name else 4096}
    assert found == [(2 * 4096, 1), (5 * 2048, 4)]


@pytest.mark.long
def test_explain_says_the_bytes_before_a_model_runs(model: LatteTransformer3DModel) -> None:
    loop = Loop(calls_of(model), TABLE)
    inputs = {"timestep": torch.tensor([500]), "encoder_hidden_states": loop.prompt}
    for preset in ("pab246", "linear2"):
        options = {"ranges": preset, "cache_dtype": "float8_e4m3", "inner": "eager"}
        found = pab_compile.explain(model, loop.latents, options=options, **inputs)
        compiled = torch.compile(model, backend="pab", options=options)
        run(compiled)
        assert found.cache_bytes == pab_compile.explain(compiled).cache_bytes
        exact = pab_compile.explain(model, loop.latents, options={"ranges": preset}, **inputs)
        assert found.cache_bytes * 64 == exact.cache_bytes * 20


@pytest.mark.parametrize(
    "given", ["bfloat16", "float16", "float8_e4m3", *CACHE_DTYPES.values(), "torch.bfloat16"]
)
def test_names_and_dtypes_are_options(given: Any) -> None:
    found = parse_options({"cache_dtype": given}).keeping.dtype
    assert found in CACHE_DTYPES.values()
    assert str(found).removesuffix("fn") in (str(given).removesuffix("fn"), f"torch.{given}")


@pytest.mark.parametrize("given", ["float32", torch.float32, torch.int8, 8, "", True, ["bfloat16"]])
def test_others_are_refused(given: Any) -> None:
    with pytest.raises(OptionError, match=r"cache_dtype=.*Known: bfloat16, float16, float8_e4m3"):
        parse_options({"cache_dtype": given})


def test_json_text_names_it() -> None:
    assert parse_options('{"cache_dtype": "float8_e4m3"}').keeping.dtype is torch.float8_e4m3fn


@pytest.mark.filterwarnings("ignore:.*")
def test_a_graph_that_cannot_be_traced_is_kept_narrow_too() -> None:
    torch.manual_seed(0)
    hooked = ANY["weights cast by hooks"]().eval().requires_grad_(False)
    compiled: Any = compiled_pab(hooked, ranges="linear3", cut="output", cache_dtype="bfloat16")
    predictions = run(compiled)
    found = pab_compile.explain(compiled)
    assert "could not be traced" in found.sites[0].reason
    assert found.cache_bytes == pab_compile.stats(compiled).peak_cache_bytes
    assert found.cache_bytes == 2 * predictions[0].numel() * 2  # a line needs two outputs
