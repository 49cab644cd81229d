"""Weights and buffers that change during a generation: nothing older is reused."""

from __future__ import annotations

from collections.abc import Callable

import peft
import pytest
import torch
from peft.utils.hotswap import hotswap_adapter

import pab_compile
from helpers.eager_code import (
    RANGES,
    Controlled,
    Dit,
    as_oracle,
    calls,
    compiled,
    forget,
)
from helpers.latte import assert_different, assert_same
from pab_compile.runtime.weights import WeightMarks

CHANGED_AT = 3  # a step at which both sites of the plan reuse, or one computes
Change = Callable[[Controlled], None]


def fill(model: Controlled) -> None:
    model.strength.fill_(0.25)


def write_weight(model: Controlled) -> None:
    model.full.query.weight.mul_(-1)


def move_data(model: Controlled) -> None:
    model.full.query.weight.data = -model.full.query.weight.data


def write_data(model: Controlled) -> None:
    model.cross.value.weight.data.mul_(-1)
    pab_compile.weights_changed()


CHANGES: dict[str, Change] = {
    "a buffer is filled": fill,
    "a weight is written in place": write_weight,
    "a weight gets other memory": move_data,
    "a weight is written through data, as announced": write_data,
}


def make(seed: int = 0) -> Controlled:
    torch.manual_seed(seed)
    return Controlled().eval().requires_grad_(False)


@pytest.mark.sample(
    "a buffer is filled-nothing reused",
    "a weight is written in place-reusing",
    "a weight gets other memory-reusing",
    "a weight is written through data, as announced-nothing reused",
)
@pytest.mark.parametrize("ranges", [RANGES, {}], ids=["reusing", "nothing reused"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_was_computed_from_other_weights_is_not_reused(
    change: str, ranges: dict[str, int]
) -> None:
    model, twin = make(), make()
    reusing = compiled(model, ranges)
    for step, inputs in enumerate(calls()):
        if step == CHANGED_AT:
            before = twin(*inputs)
            CHANGES[change](model)
            CHANGES[change](twin)
            forget(twin)
            assert_different(before, twin(*inputs))
        if ranges:
            with as_oracle(twin, step):
                assert_same(reusing(*inputs), twin(*inputs))
        else:
            assert torch.equal(reusing(*inputs), twin(*inputs))
    stats = pab_compile.stats(reusing)
    assert any("weights or buffers changed" in note for note in stats.notes) == bool(ranges)


def test_a_weight_that_is_moved_with_its_values_is_still_the_same() -> None:
    model = make()
    reusing = compiled(model, RANGES)
    for inputs in calls():
        for weight in model.parameters():
            weight.data = weight.data.clone()  # as an offloaded weight comes back
        reusing(*inputs)
    assert pab_compile.stats(reusing).reused == {"full": 3, "cross": 4}


def test_weights_may_change_between_generations() -> None:
    model, twin = make(), make()
    reusing = compiled(model, RANGES)
    for generation in range(2):
        for step, inputs in enumerate(calls()):
            with as_oracle(twin, step):
                assert_same(reusing(*inputs), twin(*inputs))
        assert pab_compile.stats(reusing).reused == {"full": 3, "cross": 4}
        if generation == 0:
            write_weight(model)
            write_weight(twin)
            forget(twin)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.float8_e4m3fn])
def test_marks_see_other_values_at_another_address(dtype: torch.dtype) -> None:
    weight = torch.nn.Parameter(torch.ones(5, 7).to(dtype), requires_grad=False)
    marks = WeightMarks([weight])
    assert marks.are_unchanged([weight])
    weight.data = torch.ones(5, 7).to(dtype)
    assert marks.are_unchanged([weight])
    weight.data = torch.zeros(5, 7).to(dtype)
    assert not marks.are_unchanged([weight])
    assert not marks.are_unchanged([torch.nn.Parameter(torch.ones(5, 7), requires_grad=False)])


def adapted(seed: int, folder: str = "") -> torch.nn.Module:
    """The model with an adapter of random weights, which is saved if there is a folder."""
    torch.manual_seed(0)
    model = Dit().eval().requires_grad_(False)
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
    torch.manual_seed(seed)
    with_adapter = peft.get_peft_model(model, config)
    if folder:
        with_adapter.save_pretrained(folder)
    return with_adapter.eval().requires_grad_(False)


def test_an_adapter_that_peft_swaps_during_a_generation_counts_at_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = str(tmp_path_factory.mktemp("adapter"))
    adapted(2, folder)
    model, twin = adapted(1), adapted(1)
    reusing = compiled(model.base_model.model, RANGES)
    for step, inputs in enumerate(calls()):
        if step == CHANGED_AT:
            for each in (model, twin):
                hotswap_adapter(each, folder, adapter_name="default")
            forget(twin.base_model.model)
        with as_oracle(twin.base_model.model, step):
            assert_same(reusing(*inputs), twin(*inputs))
    assert any("weights or buffers" in note for note in pab_compile.stats(reusing).notes)
