"""Code that is not diffusers': kinds, numbers, and what a reuse step still computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import pab_compile
from helpers.counting import counting
from helpers.latte import assert_different, assert_same

from .base import RANGES, Foreign, as_oracle
from .known import KNOWN
from .models import MODELS
from .packed import PACKED, WrittenKeys
from .styles import STYLES

NUM_STEPS = 6
EVERY = [
    pytest.param(make, id=name) for name, make in {**MODELS, **PACKED, **STYLES, **KNOWN}.items()
]


def build(make: Callable[[], Foreign], dtype: torch.dtype = torch.float32) -> Foreign:
    torch.manual_seed(0)
    return make().eval().requires_grad_(False).to(dtype)


def inputs_of(model: Foreign, step: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    def cast(leaf: Any) -> Any:
        is_float = isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.ndim > 1
        return leaf.to(dtype) if is_float else leaf

    return pytree.tree_map(cast, model.inputs(step, NUM_STEPS))


def tensors(outputs: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


@pytest.mark.sample(
    "padded joint sequence",
    "U-shaped",
    "linear attention, convolutions",
    "registers and history",
    "videos in one row",
    "keys are written",
    "gradients are switched",
    "grids of sizes, a loop in the forward",
    "keys are cut to lengths",
    "kernels are chosen",
)
@pytest.mark.filterwarnings("ignore:`torch.backends.cuda.sdp_kernel")
@pytest.mark.parametrize("make", EVERY)
def test_kinds_are_found_and_reuse_is_what_the_model_repeats_itself(
    make: Callable[[], Foreign],
) -> None:
    model = build(make)
    options = {"ranges": RANGES, "window": (0.0, 1.0), "inner": "eager"}
    compiled: Any = torch.compile(model, backend="pab", fullgraph=True, options=options)
    for step in range(NUM_STEPS):
        inputs = inputs_of(model, step)
        with as_oracle(model, step):
            expected = tensors(model(**inputs))
        eager = tensors(model(**inputs))
        with pab_compile.step(step, NUM_STEPS):
            actual = tensors(compiled(**inputs))
        for ours, right, plain in zip(actual, expected, eager, strict=True):
            assert_same(ours, right)
            if step == 1:
                assert_different(right, plain)
    kinds = Counter(site.kind for site in model.sites)  # type: ignore[union-attr]
    del kinds["mlp"]
    assert pab_compile.explain(compiled).counts() == kinds


@pytest.mark.sample("dtype1-complex rotary")
@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_reused_is_eager_bit_for_bit(
    make: Callable[[], Foreign], dtype: torch.dtype
) -> None:
    model = build(make, dtype)
    model.embed = lambda t, embed=model.embed: embed(t).to(dtype)  # type: ignore[method-assign]
    model.time.float()
    compiled: Any = torch.compile(model, backend="pab", options={"ranges": {}, "inner": "eager"})
    inputs = inputs_of(model, 0, dtype)
    for ours, theirs in zip(tensors(compiled(**inputs)), tensors(model(**inputs)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.sample("packed cross-attention", "gradients are switched")
@pytest.mark.parametrize("make", [case for case in EVERY if WrittenKeys not in case.values])
def test_a_reuse_step_computes_what_is_outside_of_the_branches(
    make: Callable[[], Foreign],
) -> None:
    model, counted = build(make), [0]

    options = {"ranges": "linear3", "inner": counting(counted)}
    compiled: Any = torch.compile(model, backend="pab", options=options)
    for step in range(3):
        counted[0] = 0
        with pab_compile.step(step, 10):
            compiled(**inputs_of(model, step))
    with as_oracle(model, 0):
        model(**inputs_of(model, 0))
    with as_oracle(model, 1, everything=True), FlopCounterMode(display=False) as outside:
        for site in model.sites:
            site.every = 100  # type: ignore[union-attr]
        model(**inputs_of(model, 2))
    with FlopCounterMode(display=False) as whole:
        model(**inputs_of(model, 2))
    branches = whole.get_total_flops() - outside.get_total_flops()
    assert counted[0] - outside.get_total_flops() <= 0.05 * branches
