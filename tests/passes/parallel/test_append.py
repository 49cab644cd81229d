"""Ops that are added get their fake values, equal ops the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.tracing import fake
from pab_compile.passes.parallel.append import Appender

MUL, CONJ = torch.ops.aten.mul.Tensor, torch.ops.aten._conj.default


def appender(*tensors: torch.Tensor) -> tuple[Appender, list[fx.Node]]:
    graph = fx.Graph()
    inputs = [graph.placeholder(f"x_{number}") for number, _ in enumerate(tensors)]
    for node, value in zip(inputs, fake(tensors), strict=True):
        ir.set_value(node, value)
    return Appender(graph), inputs


def test_equal_ops_are_computed_once_and_share_what_they_yield() -> None:
    to, (x, y) = appender(torch.zeros(2, 3).t(), torch.zeros(2, 3).t())
    made = 0

    def double(a: torch.Tensor) -> torch.Tensor:
        nonlocal made
        made += 1
        return a * 2

    first, second = to.call(double, x, like=x), to.call(double, y, like=y)
    one, other = ir.value(first), ir.value(second)
    assert made == 1 and one is other
    assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
    assert one.stride() == (1, 3) and type(one) is type(other)


@pytest.mark.parametrize("change", ["layout", "type", "number"])
def test_other_operands_are_computed_anew(change: str) -> None:
    tensors: dict[str, tuple[torch.Tensor, Any]] = {
        "layout": (torch.zeros(3, 2).t(), 2),
        "type": (torch.zeros(2, 3, dtype=torch.bfloat16), 2),
        "number": (torch.zeros(2, 3, dtype=torch.int64), 2.0),
    }
    other, number = tensors[change]
    same = torch.zeros(2, 3, dtype=other.dtype if change == "number" else torch.float32)
    to, (x, y) = appender(same, other)
    first, second = to.call(MUL, x, 2, like=x), to.call(MUL, y, number, like=y)
    expected = [same * 2, other * number]
    for node, value in zip((first, second), expected, strict=True):
        assert (ir.value(node).dtype, ir.value(node).stride()) == (value.dtype, value.stride())


def test_what_sizes_do_not_describe_keeps_its_flag() -> None:
    to, (x, y) = appender(*[torch.zeros(2, dtype=torch.complex64)] * 2)
    first, second = to.call(CONJ, x, like=x), to.call(CONJ, y, like=y)
    assert ir.value(first).is_conj() and ir.value(second).is_conj()
