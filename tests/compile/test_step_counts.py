"""What the steps of a plan run, in counts: compiled functions, kernels, products, copies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from torch._inductor import config, metrics
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.compile_fx import compile_fx
from torch.profiler import ProfilerActivity, profile, record_function

import pab_compile
from helpers.latte import Loop, calls_of, compiled_pab, ddim_timesteps, tiny_latte

pytestmark = pytest.mark.compiled_once
NUM_STEPS = 6
ATTENTION = {"spatial": 2, "temporal": 3, "cross": 6}
PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm")
COPIES = ("aten::copy_", "aten::clone")
PIECE = "a compiled function"


@dataclass(frozen=True)
class Counts:
    """What a step ran.

    Attributes:
        kernels: of each compiled function that ran, how many kernels Inductor generates for it.
        products: products of matrices.
        copies: copies of tensors that no compiled function made.
    """

    kernels: tuple[int, ...]
    products: int
    copies: int


def num_kernels(graph_module: torch.fx.GraphModule, args: Sequence[Any]) -> int:
    """How many kernels Inductor generates for a graph. No C++ compiler compiles them."""
    before = metrics.generated_kernel_count
    no_compiler = mock.patch.object(AsyncCompile, "cpp_pybinding", lambda *_: None)
    with no_compiler, config.patch(force_disable_caches=True):
        compile_fx(copy.deepcopy(graph_module), args)
    return metrics.generated_kernel_count - before


class CountingInductor:
    """An inner compiler that counts Inductor's kernels and runs the graphs eagerly.

    Attributes:
        ran: the kernels of each compiled function, in the order of the calls.
        num_compiled: how many functions it has compiled.
    """

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.num_compiled = 0

    def __call__(
        self, graph_module: torch.fx.GraphModule, args: Sequence[Any]
    ) -> Callable[..., Any]:
        num = num_kernels(graph_module, args)
        self.num_compiled += 1

        def run(*inputs: torch.Tensor) -> Any:
            self.ran.append(num)
            with record_function(PIECE):
                return graph_module(*inputs)

        return run


def is_own_copy(event: Any) -> bool:
    """Whether the profiler saw a copy that is no part of an op or of a compiled function."""
    inside = event.cpu_parent
    while inside is not None:
        if inside.name == PIECE or inside.name.startswith("aten::"):
            return False
        inside = inside.cpu_parent
    return event.name in COPIES


def counted(depth: int, ranges: Any) -> tuple[dict[str, Counts], int]:
    """Per pattern of steps after the first one, what such a step runs; the functions compiled."""
    inner = CountingInductor()
    torch._dynamo.reset()
    compiled = compiled_pab(tiny_latte(depth), inner=inner, ranges=ranges, window=(0.0, 1.0))
    Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS)).run()
    found: list[Counts] = []
    steps = Loop(calls_of(compiled), ddim_timesteps(2 * NUM_STEPS)).steps()
    for _ in range(2 * NUM_STEPS):
        inner.ran.clear()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            next(steps)
        events = list(seen.events())
        products = sum(event.name in PRODUCTS for event in events)
        copies = sum(map(is_own_copy, events))
        found.append(Counts(tuple(inner.ran), products, copies))
    patterns = pab_compile.stats(compiled).patterns  # type: ignore[arg-type]
    by_pattern: dict[str, Counts] = {}
    for pattern, counts in [*zip(patterns, found, strict=True)][1:]:
        assert by_pattern.setdefault(pattern, counts) == counts, "equal patterns differ"
    return by_pattern, inner.num_compiled


@pytest.fixture(scope="module")
def stock() -> int:
    """Kernels of the whole model under stock torch.compile, of one pair of blocks."""
    inner = CountingInductor()
    Loop(calls_of(torch.compile(tiny_latte(1), backend=inner)), ddim_timesteps(2)).run()
    return inner.ran[-1]


def test_with_nothing_reused_the_model_is_one_function_of_stocks_kernels(stock: int) -> None:
    steps, num_compiled = counted(1, {})
    assert [each.kernels for each in steps.values()] == [(stock,)]
    assert num_compiled == 1


def test_a_step_that_reuses_all_blocks_costs_the_same_at_any_depth(stock: int) -> None:
    (shallow, num_shallow), (deep, num_deep) = counted(1, "linear3"), counted(2, "linear3")
    assert {*shallow} == {*deep} == {"CCCC", "----"}
    assert shallow["----"] == deep["----"]
    assert deep["----"].products == 3  # the embedding of the timestep, and the last one
    assert len(deep["----"].kernels) == 2  # what stands before and behind the blocks
    assert sum(deep["----"].kernels) < stock / 2
    assert deep["----"].copies == deep["CCCC"].copies == 0
    assert len(deep["CCCC"].kernels) == 3
    assert sum(shallow["CCCC"].kernels) <= stock + 1
    assert num_shallow == num_deep


def test_a_step_runs_what_its_pattern_asks_for(stock: int) -> None:
    steps, num_compiled = counted(1, ATTENTION)
    products = {pattern: each.products for pattern, each in steps.items()}
    assert products == {"CCC": 18, "C--": 12, "-C-": 12, "---": 8}
    functions = {pattern: len(each.kernels) for pattern, each in steps.items()}
    assert functions == {"CCC": 7, "C--": 5, "-C-": 5, "---": 4}
    kernels = {pattern: sum(each.kernels) for pattern, each in steps.items()}
    assert kernels["---"] < min(kernels["C--"], kernels["-C-"])
    assert max(kernels["C--"], kernels["-C-"]) < stock < kernels["CCC"] <= 1.1 * stock
    assert all(each.copies == 0 for each in steps.values())
    assert num_compiled == 7  # none that the plan never runs: the first step ran them all
