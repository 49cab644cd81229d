"""Hooks that move or cast weights: harmless around the whole model, refused around its layers.

``tests/live/test_layer_hooks.py`` tests what ``enable`` does with hooks around layers.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
from diffusers import LatteTransformer3DModel

import pab_compile
from helpers.latte import (
    Loop,
    assert_same,
    calls_of,
    compiled_pab,
    ddim_timesteps,
    draw_latents,
    tiny_latte,
)
from helpers.pairs import RULE, Pair
from pab_compile import UnsupportedModelError

CPU = torch.device("cpu")


@pytest.mark.long
@pytest.mark.parametrize("compiled_first", [False, True])
def test_offloading_the_whole_model_leaves_reuse_as_it_is(compiled_first: bool) -> None:
    model = tiny_latte(depth=1)
    plain = copy.deepcopy(model)
    if not compiled_first:
        accelerate.cpu_offload_with_hook(model, CPU)
    compiled: Any = compiled_pab(model, **RULE.options())
    if compiled_first:
        accelerate.cpu_offload_with_hook(model, CPU)
    for seed in (1, 2):
        Pair(plain, compiled, latents=draw_latents(seed)).run()
    assert all(pab_compile.stats(compiled).reused.values())


def offload_layers(model: LatteTransformer3DModel) -> None:
    accelerate.cpu_offload(model, CPU)


def offload_groups(model: LatteTransformer3DModel) -> None:
    model.enable_group_offload(CPU, CPU, offload_type="leaf_level")


def cast_layers(model: LatteTransformer3DModel) -> None:
    model.enable_layerwise_casting(torch.float32, torch.float32)


REASONS = r"Dynamo broke it up because of.*disable|hooks do that cast or move"


@pytest.mark.long
@pytest.mark.parametrize("apply", [offload_layers, cast_layers])
def test_hooks_around_every_layer_are_refused_with_the_reason(
    apply: Callable[[LatteTransformer3DModel], None],
) -> None:
    model = tiny_latte(depth=1)
    apply(model)
    with pytest.raises(UnsupportedModelError, match=REASONS) as caught:
        Loop(calls_of(compiled_pab(model)), ddim_timesteps(3)).run()
    feature = {offload_layers: "sequential offloading", cast_layers: "layerwise casting"}[apply]
    message = str(caught.value)
    assert message.startswith(f"Hooks around the layers of this model ({feature}) break")
    assert "pab_compile.enable(model)" in message


@pytest.mark.sample("cast_layers")
@pytest.mark.slow
@pytest.mark.parametrize("apply", [offload_groups, cast_layers])
def test_with_hooks_around_every_layer_a_model_is_computed_and_says_why(
    apply: Callable[[LatteTransformer3DModel], None],
) -> None:
    model = tiny_latte(depth=1)
    expected = Loop(calls_of(model), ddim_timesteps(3)).run()
    apply(model)
    compiled = compiled_pab(model, on_unsupported="passthrough")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_same(Loop(calls_of(compiled), ddim_timesteps(3)).run(), expected)
    said = [str(entry.message) for entry in caught if "without reuse" in str(entry.message)]
    assert len(said) == 1
    assert re.search(REASONS, said[0]), said[0]


def test_code_that_dynamo_must_not_trace_around_the_blocks_is_named() -> None:
    model = tiny_latte(depth=1)
    block = model.transformer_blocks[0]
    block.register_forward_pre_hook(torch.compiler.disable(lambda *_: None))
    temporal = model.temporal_transformer_blocks[0]
    temporal.forward = torch.compiler.disable(temporal.forward)  # type: ignore[method-assign]
    with pytest.raises(UnsupportedModelError) as caught:
        Loop(calls_of(compiled_pab(model, inner="eager")), ddim_timesteps(3)).run()
    cause, found = str(caught.value).split("What was found so: ")
    assert cause == (
        "Dynamo must not trace a hook of 'transformer_blocks.0', the forward of "
        "'temporal_transformer_blocks.0' of this model (torch.compiler.disable), so the forward is "
        "broken there. Take the hook off, or let Dynamo trace it. "
    )
    assert "Dynamo names no reason for the breaks" in found and "graph_breaks shows" in found
