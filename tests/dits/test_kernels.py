"""The kernels that a step runs, by Inductor's own count, beside stock ``torch.compile``."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import fx
from torch._guards import TracingContext, tracing
from torch._inductor import config, metrics
from torch._inductor.compile_fx import compile_fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import pab_compile

from .build import Denoising, build, run
from .catalogue import CATALOGUE

NUM_STEPS = 6
FEW = 4
"""Kernels at the borders of the blocks that a whole graph fuses with others."""


class Kernels:
    """An inner compiler: Inductor, with a count of the kernels that its functions launch."""

    def __init__(self) -> None:
        self.launched = 0

    def __call__(self, graph: fx.GraphModule, args: Sequence[Any]) -> Any:
        """Compile a graph. Its cache on disk would leave the count out."""
        mode = FakeTensorMode(shape_env=ShapeEnv())
        fakes = [
            mode.from_tensor(arg, static_shapes=True) if isinstance(arg, torch.Tensor) else arg
            for arg in args
        ]
        before = metrics.generated_kernel_count
        with config.patch(fx_graph_cache=False), tracing(TracingContext(mode)):
            function: Any = compile_fx(graph, fakes)
        found = metrics.generated_kernel_count - before

        def counted(*inputs: Any) -> Any:
            self.launched += found
            return function(*inputs)

        return counted


def kernels_of(model: torch.nn.Module, inputs: dict[str, Any]) -> int:
    """The kernels of a call under stock ``torch.compile``."""
    kernels = Kernels()
    torch._dynamo.reset()
    run(torch.compile(model, backend=kernels), **inputs)
    return kernels.launched


def kernels_of_steps(model: torch.nn.Module, loop: Denoising, plan: str) -> dict[str, list[int]]:
    """Pattern -> the kernels of the steps that run it."""
    kernels, found = Kernels(), []
    options = {"ranges": plan, "window": (0.0, 1.0), "inner": kernels}
    compiled = torch.compile(model, backend="pab", options=options)
    with pab_compile.generation():
        for step in range(NUM_STEPS):
            kernels.launched = 0
            with pab_compile.step(step, NUM_STEPS):
                run(compiled, **loop.at(step))
            found.append(kernels.launched)
    patterns: dict[str, list[int]] = {}
    for pattern, launched in zip(pab_compile.stats(compiled).patterns, found, strict=True):
        patterns.setdefault(pattern, []).append(launched)
    return patterns


@pytest.mark.sample("wan")
@pytest.mark.parametrize("name", ["wan", "latte", "flux"])
def test_a_step_launches_the_kernels_that_skipping_blocks_leaves(name: str) -> None:
    dit = CATALOGUE[name]
    model, loop = build(dit), Denoising(dit, NUM_STEPS)
    bare = copy.deepcopy(model)
    for child, blocks in list(bare.named_children()):
        if isinstance(blocks, torch.nn.ModuleList):
            setattr(bare, child, torch.nn.ModuleList())
    whole, without = kernels_of(model, loop.at(0)), kernels_of(bare, loop.at(0))
    steps = kernels_of_steps(model, loop, "linear3")
    computing = {count for pattern, seen in steps.items() if "C" in pattern for count in seen}
    reusing = {count for pattern, seen in steps.items() if "C" not in pattern for count in seen}
    assert without + FEW < whole / 2
    assert max(computing) <= whole + FEW
    assert max(reusing) <= without + FEW
