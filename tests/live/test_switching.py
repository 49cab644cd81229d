"""Exchanging the plan: between generations and within one; nothing is compiled again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
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
from helpers.switching import Compilations, SwitchingOracle, switched

NUM_STEPS = 20
TIMESTEPS = ddim_timesteps(NUM_STEPS)
NAMES = ("linear3", "linear5", "off", "pab246", "linear2")


@pytest.fixture
def model() -> LatteTransformer3DModel:
    return tiny_latte(depth=1)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Compilations:
    return Compilations(monkeypatch)


@pytest.fixture
def handle(model: LatteTransformer3DModel) -> Iterator[pab_compile.Handle]:
    found = pab_compile.enable(model, "linear3", inner="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield found
    found.disable()


def run(model: Callable[..., Any], **loop: Any) -> torch.Tensor:
    return Loop(calls_of(model), TIMESTEPS, **loop).run()


def test_one_compilation_serves_all_plans_that_treat_sites_alike(
    model: LatteTransformer3DModel,
    handle: pab_compile.Handle,
    compilations: Compilations,
    runs_all: bool,
) -> None:
    found: dict[str, torch.Tensor] = {}
    for name in ("linear3", "off", "linear5", "pab246", "linear3", "pab357"):
        handle.set(name)
        result = run(model)
        assert name not in found or torch.equal(found[name], result)
        found[name] = result
        assert compilations.count == (2 if "pab246" in found else 1), name
    handle.disable()
    torch._dynamo.reset()
    assert torch.equal(found["off"], run(model))
    for name in ("linear5", "pab246") if runs_all else ("pab246",):
        with torch._dynamo.config.patch(error_on_recompile=False):
            assert torch.equal(found[name], run(compiled_pab(model, ranges=name))), name
        assert_different(found[name], found["off"])


def test_within_a_generation_only_outputs_that_the_new_plan_names_are_reused(
    model: LatteTransformer3DModel, handle: pab_compile.Handle, compilations: Compilations
) -> None:
    draw = random.Random(0)
    cases = [
        {0: "linear5", 7: "linear3"},
        {0: "linear3", 7: "off", 12: "linear3"},
        {0: "linear3", 6: "pab246", 11: "linear3"},
        {0: "linear2", 4: "linear3", 5: "linear2"},
        {0: "off", 5: "linear2"},
        {0: "pab246", 9: "off", 10: "pab246"},
    ]
    for _ in range(3):
        steps = sorted(draw.sample(range(1, NUM_STEPS), 3))
        cases.append({step: draw.choice(NAMES) for step in (0, *steps)})
    reused_after = 0
    for plans in cases:
        oracle = SwitchingOracle(model, plans, TIMESTEPS)
        expected = Loop(oracle, TIMESTEPS).run()
        assert_same(switched(handle, model, TIMESTEPS, plans), expected)
        reused = {kind: n for kind, n in handle.stats()["model"].reused.items() if n}
        assert reused == {kind: n for kind, n in oracle.reused().items() if n}, plans
        last = max(plans)
        reused_after += sum(bool(e.reused) and e.step >= last for e in oracle.events)
    assert reused_after > 0
    assert compilations.count == 2


def test_without_a_schedule_a_new_plan_reuses_only_what_was_computed_since(
    model: LatteTransformer3DModel,
) -> None:
    """Nothing shows the number of steps, so decisions are made step by step.

    The whole output is reused, so a repeat is the last output itself.
    """
    rule: dict[str, Any] = {"predict": 1, "window": (0.0, 1.0)}
    handle = pab_compile.enable(model, inner="eager", cut="output", ranges={"output": 5}, **rule)
    latents, prompt = torch.randn(1, 4, 4, 8, 8), torch.randn(1, 5, 12)

    def step(call: Any, number: int) -> torch.Tensor:
        timestep = torch.tensor([990.0 - 10 * number])
        with torch.no_grad():
            return call(latents, timestep=timestep, encoder_hidden_states=prompt).sample

    eager = tiny_latte(depth=1)
    expected = {number: step(eager, number) for number in range(20)}
    seen = ""
    for number in range(20):
        result = step(model, number)
        repeated = [s for s in range(number) if torch.equal(result, expected[s])]
        is_computed = torch.equal(result, expected[number])
        seen += "C" if is_computed else str(repeated[-1]) if repeated else "-"
        if number == 7:
            handle.set({"ranges": {"output": 4}, **rule})
    # Without a schedule, the outputs of step 0 are not reused, nor are those before the exchange.
    assert seen == "CCCCCC55" + "C888" + "C---" + "C---"


@pytest.mark.long
def test_explain_says_what_the_plan_that_holds_does(
    model: LatteTransformer3DModel, handle: pab_compile.Handle
) -> None:
    run(model)
    for name, fixed in (("pab246", "pab246"), ("off", {})):
        handle.set(name)
        run(model)
        found = handle.explain()["model"]
        own = compiled_pab(tiny_latte(depth=1), ranges=fixed)
        with torch._dynamo.config.patch(error_on_recompile=False):
            run(own)
        expected = pab_compile.explain(own)  # type: ignore[arg-type]
        assert found.sites == expected.sites, name
        assert found.cache_bytes == expected.cache_bytes
        assert found.reuse_flops == expected.reuse_flops
