"""Exchanging the plan of one compiled model: per step, per call, per thread, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from diffusers import LatteTransformer3DModel

import pab_compile
from helpers.latte import Loop, assert_same, calls_of, ddim_timesteps, tiny_latte
from helpers.switching import SwitchingOracle, switched

pytestmark = pytest.mark.compiled_once
TIMESTEPS = ddim_timesteps(20)


@pytest.fixture(scope="module")
def model() -> LatteTransformer3DModel:
    return tiny_latte(depth=1)


@pytest.fixture(scope="module")
def handle(model: LatteTransformer3DModel) -> Iterator[pab_compile.Handle]:
    found = pab_compile.enable(model, "linear3", inner="eager")
    yield found
    found.disable()


def run(model: torch.nn.Module) -> torch.Tensor:
    return Loop(calls_of(model), TIMESTEPS).run()


def test_the_change_is_noted_with_its_step(
    model: LatteTransformer3DModel, handle: pab_compile.Handle
) -> None:
    switched(handle, model, TIMESTEPS, {0: "linear5", 7: "linear3"})
    (note,) = handle.stats()["model"].notes
    assert note.startswith("the plan changed from 'linear5' to 'linear3' at step 7")
    run(model)
    assert handle.stats()["model"].notes == ()


@pytest.mark.sample("pab246")
@pytest.mark.parametrize("other", ["off", "pab246"])
def test_all_calls_of_a_step_have_the_plan_of_its_first_call(
    model: LatteTransformer3DModel, handle: pab_compile.Handle, other: str
) -> None:
    handle.set("linear3")
    plain = calls_of(model)
    calls = 0

    def changing(*args: Any) -> torch.Tensor:
        nonlocal calls
        result = plain(*args)
        calls += 1
        if calls == 2 * 7 + 1:  # between the two calls of step 7
            handle.set(other)
        return result

    actual = Loop(changing, TIMESTEPS, guidance="two calls").run()
    oracle = SwitchingOracle(model, {0: "linear3", 8: other}, TIMESTEPS)
    expected = Loop(oracle, TIMESTEPS, guidance="two calls").run()
    assert_same(actual, expected)
    at_seven = [event for event in oracle.events if event.step == 7]
    assert all(event.reused for event in at_seven)


def test_threads_have_plans_of_their_own(
    model: LatteTransformer3DModel, handle: pab_compile.Handle
) -> None:
    names = ("linear2", "linear5", "off", "linear3")
    expected = {}
    for name in names:
        handle.set(name)
        expected[name] = run(model)
    handle.set("linear4")

    def request(name: str) -> torch.Tensor:
        with handle.use(name):
            assert handle.plan == name
            return run(model)

    with ThreadPoolExecutor(2) as threads:
        for name, found in zip(names * 2, threads.map(request, names * 2), strict=True):
            assert torch.equal(found, expected[name]), name
    assert handle.plan == "linear4"


def test_a_block_ends_within_a_generation(
    model: LatteTransformer3DModel, handle: pab_compile.Handle
) -> None:
    handle.set("linear3")
    loop = Loop(calls_of(model), TIMESTEPS)
    steps = loop.steps()
    for _ in range(7):
        next(steps)
    with handle.disabled():
        assert handle.plan == "off"
        for _ in range(3):
            next(steps)
    for _ in steps:
        pass
    plans = {0: "linear3", 7: "off", 10: "linear3"}
    expected = Loop(SwitchingOracle(model, plans, TIMESTEPS), TIMESTEPS).run()
    assert_same(torch.stack(loop.predictions), expected)


def test_another_form_frees_what_the_first_one_cached(
    model: LatteTransformer3DModel, handle: pab_compile.Handle
) -> None:
    switched(handle, model, TIMESTEPS, {0: "pab246", 9: "linear3"})
    both = handle.stats()["model"].peak_cache_bytes
    handle.set("pab246")
    run(model)
    assert both <= handle.stats()["model"].peak_cache_bytes
