"""What a step computes with coalescing: eager's bits if it computes, and no more than without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import pab_compile
from dits.build import Denoising, build, run
from dits.catalogue import CATALOGUE
from helpers.coalescing_dits import (
    COLUMNS,
    FRAMES,
    HEIGHT,
    WIDTH,
    AddedBeforeTheGate,
    Dit,
    DroppedText,
    Hooked,
    ReadBetween,
    inputs_at,
)
from helpers.latte import assert_different, assert_same
from pab_compile.passes.graph.flops import count_flops

NUM_STEPS = 6
RANGES = dict.fromkeys(("spatial", "temporal", "cross", "full", "joint", "text", "other", "mlp"), 3)
BLOCKS = [DroppedText, AddedBeforeTheGate, ReadBetween]


@dataclass
class Run:
    """A generation of a compiled model: its outputs, and the FLOPs of every step."""

    outputs: list[torch.Tensor] = field(default_factory=list)
    flops: list[int] = field(default_factory=list)
    compiled: Any = None

    @property
    def share(self) -> float:
        """The share of a full step that a step computes that reuses everything."""
        assert self.flops[1] == self.flops[2] == self.flops[4]
        return self.flops[1] / self.flops[0]


def generate(
    model: torch.nn.Module, coalesce: bool, inputs: Callable[[int], Any], **more: Any
) -> Run:
    """Run a model that computes at every third step."""
    done, count = Run(), [0]

    def inner(graph_module: Any, _: Any) -> Any:
        flops = count_flops(graph_module.graph.nodes)

        def function(*args: torch.Tensor) -> Any:
            count[0] += flops
            return graph_module(*args)

        return function

    options = {"ranges": RANGES, "window": (0.0, 1.0), "cut": "gated", "inner": inner, **more}
    done.compiled = torch.compile(model, backend="pab", options={**options, "coalesce": coalesce})
    with pab_compile.generation():
        for step in range(NUM_STEPS):
            count[0] = 0
            with pab_compile.step(step, NUM_STEPS):
                done.outputs.append(run(done.compiled, **inputs(step))[0])
            done.flops.append(count[0])
    return done


def both_ways(model: torch.nn.Module, inputs: Callable[[int], Any], **more: Any) -> Iterator[Run]:
    """Without coalescing, and with it."""
    return (generate(model, coalesce, inputs, **more) for coalesce in (False, True))


@pytest.mark.sample("DroppedText", "ReadBetween")
@pytest.mark.parametrize("block", BLOCKS)
def test_a_reuse_computes_no_branch_and_equals_hooks_on_modules(block: type) -> None:
    model = Dit(block)
    hooked = Hooked(model)
    expected = [hooked(s % 3 > 0, **inputs_at(s, NUM_STEPS)) for s in range(NUM_STEPS)]
    assert_different(expected[1], model(**inputs_at(1, NUM_STEPS)))
    single, merged = both_ways(model, lambda step: inputs_at(step, NUM_STEPS))
    for way in (single, merged):
        assert_same(torch.stack(way.outputs), torch.stack(expected))
        assert torch.equal(way.outputs[0], expected[0]) and torch.equal(way.outputs[3], expected[3])
    # What is left: patches, the projection of two added kinds, the last projection.
    assert merged.share <= single.share < 0.1
    for way in (single, merged):
        assert pab_compile.explain(way.compiled).reuse_flops == way.flops[1]
    stats = [pab_compile.stats(way.compiled) for way in (single, merged)]
    assert stats[0].reused == stats[1].reused and stats[0].computed == stats[1].computed
    assert stats[1].peak_cache_bytes < stats[0].peak_cache_bytes


def test_mlps_of_a_prompt_that_is_not_returned_run_with_the_attentions_only() -> None:
    model, depth = Dit(DroppedText), 3
    hooked = Hooked(model, "attention_branch")
    expected = [hooked(s % 3 > 0, **inputs_at(s, NUM_STEPS)) for s in range(NUM_STEPS)]
    done = generate(model, False, lambda step: inputs_at(step, NUM_STEPS), ranges={"joint": 3})
    assert_same(torch.stack(done.outputs), torch.stack(expected))
    tokens = FRAMES * HEIGHT * COLUMNS
    mlp, ends = 2 * 2 * tokens * WIDTH * 4 * WIDTH, 2 * 2 * tokens * 4 * WIDTH
    assert done.flops[1] == depth * mlp + ends + 2 * 8 * WIDTH  # the last: of the timestep
    assert pab_compile.explain(done.compiled).reuse_flops == done.flops[1]


@pytest.mark.sample("dtype1-AddedBeforeTheGate")
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_that_computes_equals_eager_bit_for_bit(block: type, dtype: torch.dtype) -> None:
    model = Dit(block, depth=2).to(dtype)
    done = generate(model, True, lambda step: inputs_at(step, NUM_STEPS, dtype), predict=1)
    for step in (0, 3):
        assert torch.equal(done.outputs[step], model(**inputs_at(step, NUM_STEPS, dtype)))
    assert not torch.equal(done.outputs[1], model(**inputs_at(1, NUM_STEPS, dtype)))


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "share"),
    [
        pytest.param("qwen_image", 0.03, id="qwen_image"),
        pytest.param("easyanimate", 0.03, id="easyanimate", marks=pytest.mark.slow),
        # Video and sound read each other.
        pytest.param("ltx2", 0.06, id="ltx2", marks=pytest.mark.slow),
    ],
)
def test_a_reuse_of_models_of_diffusers_costs_no_more_than_without(name: str, share: float) -> None:
    dit = CATALOGUE[name]
    model, loop = build(dit), Denoising(dit, NUM_STEPS)
    single, merged = both_ways(model, loop.at, **dit.options)
    assert merged.share < share
    assert merged.share <= single.share
    assert_same(torch.stack(merged.outputs), torch.stack(single.outputs), 1e-4)
    for step in (0, 3):
        assert torch.equal(merged.outputs[step], run(model, **loop.at(step))[0])
