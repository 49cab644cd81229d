"""Autocast inside a forward becomes casts in the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from helpers.captured import ops, through_dynamo, values
from helpers.golden import check_inline
from pab_compile.passes.errors import NotTracedError
from pab_compile.passes.graph import autocast
from pab_compile.passes.graph.printer import format_graph

LOW = torch.autocast("cpu", torch.bfloat16)
Model = Callable[[torch.Tensor, torch.Tensor], Any]


def attention(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        q = F.linear(x, w)[None]
        y = F.scaled_dot_product_attention(q, q, q)
        return (y.float() + x).sum(-1)


def norms(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = torch.softmax(x @ w, -1)
        return F.layer_norm(y.to(x.dtype), [3]) * torch.exp(y)


def nested(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = x @ w
        with torch.autocast("cpu", enabled=False):
            z = y.float() @ w
        return torch.cat([y, z @ w.type_as(z)])


def several(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.autocast("cpu", torch.bfloat16):
        y = x @ w
    z = y.float() * x
    with torch.autocast("cpu", torch.bfloat16):
        return (
            y,
            torch.einsum("ij,jk->ik", z, w),
            torch.conv1d(z[None], w[..., None]),
            torch.stack([y, z]),
        )


def written(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = x.clone()
        y += 1
        return y.mul_(2) @ w


def unused(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        y = x + 1
        return y @ w.type_as(y)


@pytest.mark.parametrize("model", [attention, norms, nested, several, written, unused])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_graph_computes_what_eager_does_bit_for_bit(model: Model, dtype: torch.dtype) -> None:
    args = values(3, 3, seed=1).to(dtype), values(3, 3, seed=2)
    expected = model(*args)
    graph_module = through_dynamo(model, *args)
    assert not any("autocast" in op for op in ops(graph_module))
    actual = graph_module(*args)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_casts_stand_where_autocast_makes_them() -> None:
    graph_module = through_dynamo(norms, values(3, 3), values(3, 3))
    check_inline(
        format_graph(graph_module),
        """\
        %arg0_1 = input args[0] : f32[3, 3]
        %arg1_1 = input args[1] : f32[3, 3]
        %_to_copy = aten._to_copy(%arg1_1, dtype=bf16) : bf16[3, 3]
        %_to_copy_1 = aten._to_copy(%arg0_1, dtype=bf16) : bf16[3, 3]
        %matmul = aten.matmul(%_to_copy_1, %_to_copy) : bf16[3, 3]
        %softmax = aten.softmax(%matmul, -1) : bf16[3, 3]
        %_to_copy_2 = aten._to_copy(%softmax, dtype=f32) : f32[3, 3]
        %layer_norm = aten.layer_norm(%_to_copy_2, [3]) : f32[3, 3]
        %exp = aten.exp(%softmax) : bf16[3, 3]
        %mul = aten.mul(%layer_norm, %exp) : f32[3, 3]
        return %mul
        """,
    )


def test_a_second_capture_changes_nothing() -> None:
    args = values(3, 3, seed=1), values(3, 3, seed=2)
    once = through_dynamo(attention, *args)
    again = through_dynamo(lambda *inputs: once(*inputs), *args)
    assert [op for op in ops(again) if op != "detach"] == ops(once)


@pytest.mark.parametrize("model", [attention, nested, several, unused])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_all_casts_are_in_the_graph(model: Model, dtype: torch.dtype) -> None:
    """The graph runs without autocast, which would cast what a region left as it was."""

    def around(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y = model(x @ x, w)
        return (y[0] if isinstance(y, tuple) else y) @ w[0]

    args = values(3, 3, seed=1).to(dtype), values(3, 3, seed=2)
    with LOW:
        expected = around(*args)
        graph_module = through_dynamo(around, *args)
        with autocast.off():
            (actual,) = graph_module(*args)
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)


def inside(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """An op of several matrix products casts what lies between them."""
    with torch.autocast("cpu", torch.bfloat16):
        return torch.linalg.multi_dot([x, w, x.exp(), w])


def test_casts_inside_of_an_op_are_those_of_its_inputs() -> None:
    args = values(3, 3, seed=1), values(3, 3, seed=2)
    assert torch.equal(through_dynamo(inside, *args)(*args)[0], inside(*args))


def test_an_op_that_no_casts_of_its_inputs_express_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(autocast._Watch, "equals", lambda *_, **__: False)
    with pytest.raises(NotTracedError, match="casts values inside of it"):
        through_dynamo(inside, values(3, 3), values(3, 3))


@pytest.mark.filterwarnings("ignore:In CPU autocast", "ignore:CUDA is not available")
def test_a_region_that_torch_switches_off_casts_nothing() -> None:
    def for_other_types(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.float32):
            y = x.bfloat16() @ w.bfloat16()
        return y + 1

    def for_other_devices(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", torch.float32):
            y = x.float() @ w
        return y + 1

    args = values(2, 3), values(3, 3)
    assert ops(through_dynamo(for_other_types, *args)) == ["_to_copy", "_to_copy", "matmul", "add"]
    assert ops(through_dynamo(for_other_devices, *args)) == ["matmul", "add"]
