"""Floating point operations: two per multiply-add, contractions only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as f
from torch.utils.flop_counter import FlopCounterMode

import helpers.captured as models
from helpers.captured import captured, small_dit, values
from pab_compile.passes.graph.flops import count_flops, node_flops

CASES: dict[str, tuple[Callable[..., torch.Tensor], dict[str, torch.Tensor], int]] = {
    "linear": (f.linear, {"x": values(2, 3, 4), "w": values(5, 4)}, 2 * 2 * 3 * 4 * 5),
    "mm": (lambda a, b: torch.mm(a, b), {"a": values(3, 4), "b": values(4, 5)}, 2 * 3 * 4 * 5),
    "bmm": (
        lambda a, b: torch.bmm(a, b),
        {"a": values(2, 3, 4), "b": values(2, 4, 5)},
        2 * 2 * 3 * 4 * 5,
    ),
    "matmul": (lambda a, b: a @ b, {"a": values(2, 3, 4), "b": values(4, 5)}, 2 * 2 * 3 * 4 * 5),
    "addmm": (
        lambda c, a, b: torch.addmm(c, a, b),
        {"c": values(5), "a": values(3, 4), "b": values(4, 5)},
        2 * 3 * 4 * 5,
    ),
    "conv2d": (
        lambda x, w: f.conv2d(x, w, stride=2),
        {"x": values(2, 3, 8, 8), "w": values(5, 3, 2, 2)},
        2 * (2 * 5 * 4 * 4) * (3 * 2 * 2),
    ),
    "grouped conv1d": (
        lambda x, w: f.conv1d(x, w, groups=3),
        {"x": values(1, 6, 9), "w": values(3, 2, 2)},
        2 * (3 * 8) * (2 * 2),
    ),
    "attention": (
        lambda q, k, v: f.scaled_dot_product_attention(q, k, v),
        {"q": values(2, 3, 4), "k": values(2, 5, 4), "v": values(2, 5, 6)},
        2 * 2 * 3 * 5 * (4 + 6),
    ),
    "einsum": (
        lambda a, b: torch.einsum("bnc,bmc->bnm", a, b),
        {"a": values(2, 3, 4), "b": values(2, 5, 4)},
        2 * 2 * 3 * 5 * 4,
    ),
    "einsum with an ellipsis": (
        lambda a, b: torch.einsum("...nc,chd->...nhd", a, b),
        {"a": values(2, 6, 3, 4), "b": values(4, 5, 7)},
        2 * (2 * 6 * 3) * (5 * 7) * 4,
    ),
    "einsum of one": (lambda a: torch.einsum("bnc->bcn", a), {"a": values(2, 3, 4)}, 0),
    "elementwise": (lambda a: a.sin() * 2 + a, {"a": values(2, 3)}, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_every_contraction_counts_two_per_multiply_add(name: str) -> None:
    function, tensors, expected = CASES[name]

    def call(**given: Any) -> torch.Tensor:
        return function(*given.values())

    scope = {"call": call}
    names = list(tensors)
    by_name = ", ".join(f"{key}={key}" for key in names)
    traced = eval(f"lambda {', '.join(names)}: call({by_name})", scope)
    assert count_flops(captured(traced, **tensors).graph.nodes) == expected


@pytest.mark.parametrize("model", [models.mlp_block, models.cross_attention, models.two_prompts])
def test_the_total_is_what_torch_counts(model: Callable[..., torch.Tensor]) -> None:
    found = captured(model)
    with FlopCounterMode(display=False) as counter:
        found.eager()
    assert count_flops(found.graph.nodes) == counter.get_total_flops() > 0


def test_inputs_and_outputs_cost_nothing() -> None:
    graph = small_dit(1).graph
    assert all(node_flops(node) == 0 for node in graph.nodes if node.op != "call_function")


@pytest.mark.long
def test_depth_adds_equal_blocks() -> None:
    one, two, three = (count_flops(small_dit(depth).graph.nodes) for depth in (1, 2, 3))
    assert three - two == two - one > 0


def test_a_module_on_meta_tensors_counts_the_same() -> None:
    linear = nn.Linear(4, 5, device="meta")
    found = captured(
        lambda x, w: f.linear(x, w),
        x=torch.empty(2, 4, device="meta"),
        w=torch.nn.Parameter(linear.weight),
    )
    assert count_flops(found.graph.nodes) == 2 * 2 * 4 * 5
