"""Hooks that bring the weights of every layer: ``enable`` brings them inside the graph instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from diffusers import LatteTransformer3DModel
from diffusers.hooks import group_offloading
from torch.utils._python_dispatch import TorchDispatchMode

import pab_compile
from helpers.latte import (
    Loop,
    assert_same,
    calls_of,
    compiled_pab,
    ddim_timesteps,
    draw_latents,
    draw_prompt,
    tiny_latte,
)
from helpers.oracle import Oracle
from helpers.pairs import NUM_STEPS, RULE
from pab_compile import UnsupportedModelError
from pab_compile.live import bring_weights
from pab_compile.live.bring_weights import Target

CPU, META = torch.device("cpu"), torch.device("meta")
FLOAT8 = torch.float8_e4m3fn
DTYPES = (torch.float32, torch.bfloat16)


def cast_layers(model: LatteTransformer3DModel) -> None:
    model.enable_layerwise_casting(FLOAT8, model.dtype)


def offload_blocks(model: LatteTransformer3DModel) -> None:
    model.enable_group_offload(CPU, CPU, offload_type="block_level", num_blocks_per_group=1)


def offload_leaves(model: LatteTransformer3DModel) -> None:
    model.enable_group_offload(CPU, CPU, offload_type="leaf_level")


def offload_and_cast(model: LatteTransformer3DModel) -> None:
    cast_layers(model)
    offload_blocks(model)


def offload_and_find_the_order(model: LatteTransformer3DModel) -> None:
    """What streams need besides; a stream itself needs an accelerator."""
    offload_leaves(model)
    registry = model._diffusers_hook
    registry.register_hook(
        group_offloading.LazyPrefetchGroupOffloadingHook(), "lazy_prefetch_group_offloading"
    )


def offload_in_sequence(model: LatteTransformer3DModel) -> None:
    accelerate.cpu_offload(model, CPU)


def offload_with_buffers(model: LatteTransformer3DModel) -> None:
    accelerate.cpu_offload(model, CPU, offload_buffers=True)


FEATURES: dict[str, tuple[Callable[[LatteTransformer3DModel], None], str]] = {
    "casting": (cast_layers, "layerwise casting"),
    "blocks": (offload_blocks, "group offloading"),
    "leaves": (offload_leaves, "group offloading"),
    "blocks and casting": (offload_and_cast, "group offloading, layerwise casting"),
    "order of layers": (offload_and_find_the_order, "group offloading"),
    "sequential": (offload_in_sequence, "sequential offloading"),
    "sequential with buffers": (offload_with_buffers, "sequential offloading"),
}


def generate(model: Any, timesteps: torch.Tensor | None = None) -> torch.Tensor:
    """All predictions of a loop, with inputs of the model's type."""
    dtype = next(p.dtype for n, p in model.named_parameters() if "scale_shift_table" in n)
    return loop_of(calls_of(model), dtype, timesteps).run()


def loop_of(call: Any, dtype: torch.dtype, timesteps: torch.Tensor | None = None) -> Loop:
    """A loop of a type."""
    return Loop(
        call,
        ddim_timesteps(NUM_STEPS) if timesteps is None else timesteps,
        latents=draw_latents().to(dtype),
        prompt=draw_prompt().to(dtype),
    )


def without_hooks(model: LatteTransformer3DModel, dtype: torch.dtype) -> LatteTransformer3DModel:
    """A model that computes the same without hooks: its weights went through the small type."""
    plain = tiny_latte(depth=1).to(dtype)
    small = {name for name, weight in model.named_parameters() if weight.dtype == FLOAT8}
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            if name in small:
                weight.copy_(weight.to(FLOAT8))
    return plain


@pytest.mark.sample("bfloat16-casting", "float32-blocks", "float32-sequential")
@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_layers_that_bring_their_weights_reuse_as_the_oracle_does(
    name: str, dtype: torch.dtype
) -> None:
    apply, _ = FEATURES[name]
    model = tiny_latte(depth=1).to(dtype)
    apply(model)
    plain = without_hooks(model, dtype)
    before = {n: (p.dtype, p.device) for n, p in model.named_parameters()}
    handle = pab_compile.enable(model, ranges=RULE.ranges, window=RULE.window, inner="eager")
    oracle = Oracle(plain, RULE)
    expected, eager = loop_of(oracle, dtype).run(), generate(plain)
    assert not torch.equal(expected, eager)
    assert_same(generate(model), expected, 1e-5 if dtype == torch.float32 else 0.0)
    stats = handle.stats()["model"]
    assert (stats.reused, stats.computed, stats.notes) == (oracle.reused(), oracle.computed(), ())
    names = [site.name for site in handle.explain()["model"].sites]
    assert all(
        re.fullmatch(r"(temporal_)?transformer_blocks\.0\.[a-z]+[\d.net]*", n) for n in names
    )
    with handle.disabled():
        assert torch.equal(generate(model), eager)
    handle.disable()
    assert {n: (p.dtype, p.device) for n, p in model.named_parameters()} == before
    assert torch.equal(generate(model), eager)


class Moves(TorchDispatchMode):
    """Counts the tensors that are moved to a device without memory, in the pieces that run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        if op._overloadpacket is torch.ops.aten._to_copy:
            self.count += args[0].device == CPU and result.device == META
        return result

    def inner(self, graph_module: Any, _: Any) -> Callable[..., Any]:
        """An inner compiler that runs pieces eagerly."""

        def function(*args: torch.Tensor) -> Any:
            with self:
                return graph_module(*args)

        return function


@pytest.mark.parametrize(
    "apply", [offload_blocks, pytest.param(offload_leaves, marks=pytest.mark.long)]
)
def test_a_step_that_reuses_moves_no_weight_of_what_it_reuses(
    apply: Callable[[LatteTransformer3DModel], None],
) -> None:
    model = tiny_latte(depth=1)
    apply(model)
    for layer in model.modules():  # a device that needs no accelerator
        for hook in getattr(getattr(layer, "_diffusers_hook", None), "hooks", {}).values():
            hook.group.onload_device = META
    moves, counts = Moves(), []
    handle = pab_compile.enable(model, "linear3", inner=moves.inner)
    for timestep in ddim_timesteps(7):
        before = moves.count
        inputs = {"timestep": timestep[None], "encoder_hidden_states": draw_prompt()}
        with torch.no_grad():
            model(draw_latents(), **inputs, return_dict=False)
        counts.append(moves.count - before)
    patterns = handle.stats()["model"].patterns
    reusing = {count for count, pattern in zip(counts, patterns, strict=True) if "-" in pattern}
    computing = {count for count, pattern in zip(counts, patterns, strict=True) if "C" in pattern}
    inside = [n for n in model.state_dict() if "transformer_blocks." in n]
    assert len(reusing) == len(computing) == 1
    assert reusing.pop() <= len(model.state_dict()) - len(inside)
    assert computing.pop() >= 0.9 * len(model.state_dict())  # keys of the prompt: a prelude


def refused_with(feature: str, call: Callable[[], object]) -> None:
    """A call is refused, and the error names the feature and the way out."""
    with pytest.raises(UnsupportedModelError) as caught:
        call()
    found = re.match(r"Hooks around the layers of this model \((.*?)\)", str(caught.value))
    assert found is not None, str(caught.value)
    assert found[1] == feature
    assert "then call pab_compile.enable(model)" in str(caught.value)


@pytest.mark.long
@pytest.mark.parametrize("how", ["compile after", "compile before", "enable before"])
@pytest.mark.parametrize("name", ["casting", "blocks", "leaves", "sequential"])
def test_elsewhere_they_are_refused_by_name_until_enable_follows(name: str, how: str) -> None:
    apply, feature = FEATURES[name]
    model: Any = tiny_latte(depth=1)
    handle = None
    if how == "enable before":
        handle = pab_compile.enable(model, "linear3", inner="eager")
    compiled = compiled_pab(model) if how == "compile before" else model
    apply(model)
    plain = without_hooks(model, torch.float32)
    if how == "compile after":
        compiled = compiled_pab(model)
    call = calls_of(compiled)
    refused_with(feature, lambda: Loop(call, ddim_timesteps(3)).run())
    if handle is not None:
        handle.disable()
        handle = pab_compile.enable(model, "linear3", inner="eager")
        generate(model)
        assert all(handle.stats()["model"].reused.values())
        with handle.disabled():
            assert torch.equal(generate(model), generate(plain))


def test_enable_follows_a_call_that_hooks_around_leaves_broke_up() -> None:
    model = tiny_latte(depth=1)
    offload_leaves(model)
    compiled = compiled_pab(model)
    refused_with("group offloading", lambda: Loop(calls_of(compiled), ddim_timesteps(3)).run())
    handle = pab_compile.enable(model, "linear3", inner="eager")
    generate(model, ddim_timesteps(6))
    assert all(handle.stats()["model"].reused.values())


@pytest.mark.long
def test_explain_names_the_feature() -> None:
    model = tiny_latte(depth=1)
    offload_blocks(model)
    inputs = (draw_latents(), torch.tensor([500]), draw_prompt())
    refused_with("group offloading", lambda: pab_compile.explain(model, *inputs))


def offload_groups_to_disk(model: LatteTransformer3DModel, folder: Path) -> None:
    model.enable_group_offload(
        CPU, CPU, offload_type="leaf_level", offload_to_disk_path=str(folder / "groups")
    )


def offload_to_disk(model: LatteTransformer3DModel, folder: Path) -> None:
    accelerate.disk_offload(model, str(folder), CPU)


@pytest.mark.sample("offload_to_disk")
@pytest.mark.parametrize("apply", [offload_groups_to_disk, offload_to_disk])
def test_weights_on_disk_are_refused_by_name(
    apply: Callable[[LatteTransformer3DModel, Path], None], tmp_path: Path
) -> None:
    model = tiny_latte(depth=1)
    apply(model, tmp_path)
    pab_compile.enable(model, "linear3", inner="eager")
    with pytest.raises(UnsupportedModelError, match=r"offloading to disk.*cut.*output"):
        generate(model, ddim_timesteps(3))


@pytest.mark.long
def test_weights_on_disk_go_with_the_whole_output(tmp_path: Path) -> None:
    model = tiny_latte(depth=1)
    expected = generate(model, ddim_timesteps(6))
    offload_to_disk(model, tmp_path)
    handle = pab_compile.enable(model, "linear3", cut="output", inner="eager")
    with handle.disabled():
        assert torch.equal(generate(model, ddim_timesteps(6)), expected)
    assert not torch.equal(generate(model, ddim_timesteps(6)), expected)
    assert handle.stats()["model"].reused["output"] > 0


def test_a_weight_that_changes_is_noticed_in_its_small_type() -> None:
    model = tiny_latte(depth=1).to(torch.bfloat16)
    cast_layers(model)
    handle = pab_compile.enable(model, "linear3", inner="eager")
    loop = loop_of(calls_of(model), torch.bfloat16)
    weight = model.transformer_blocks[0].ff.net[2].weight
    assert weight.dtype == FLOAT8
    steps = loop.steps()
    for _ in range(5):
        next(steps)
    with torch.no_grad():
        weight.copy_(-weight.float())
    latents = loop.latents
    next(steps)
    assert "weights or buffers changed" in " ".join(handle.stats()["model"].notes)
    handle.disable()
    again = loop_of(calls_of(model), torch.bfloat16, loop.timesteps[5:6])
    again.latents = latents
    assert torch.equal(again.run()[0], loop.predictions[5])


@pytest.mark.long
@pytest.mark.slow
def test_inductor_compiles_the_casts_into_the_pieces() -> None:
    model = tiny_latte(depth=1)
    cast_layers(model)
    plain = without_hooks(model, torch.float32)
    handle = pab_compile.enable(model, "linear3", cut="attention")
    with handle.disabled():
        assert_same(generate(model), generate(plain), 1e-4)
    generate(model)
    assert all(handle.stats()["model"].reused.values())


class Tied(torch.nn.Module):
    """A layer that has one weight under two names, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = torch.nn.Parameter(torch.ones(2))
        self.register_buffer("shift", torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.first * self.second + self.shift


def test_a_layer_brings_a_weight_under_all_of_its_names_and_keeps_its_own() -> None:
    layer = Tied().to(FLOAT8)
    weight = layer.first
    forward = bring_weights.bringing(layer, layer.forward, Target(dtype=torch.float32))
    assert torch.equal(forward(torch.full((2,), 3.0)), torch.full((2,), 4.0))
    assert layer.first is layer.second is weight
    assert weight.dtype == layer.shift.dtype == FLOAT8
    moving = bring_weights.bringing(layer, lambda *args, **kw: (args, kw), Target(device=META))
    (x, listed), kept = moving(torch.ones(2), [torch.ones(3)], other=1)
    assert (x.device, listed[0].device, kept) == (META, META, {"other": 1})
