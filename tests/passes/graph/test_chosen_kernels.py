"""The kernels that a model chooses for its attentions, also in the deprecated way."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from helpers.captured import ops, through_dynamo, values
from helpers.golden import check_inline
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.printer import format_graph

Model = Callable[[torch.Tensor], torch.Tensor]
SHAPE = (1, 2, 40, 8)
MATH, FLASH = SDPBackend.MATH, SDPBackend.FLASH_ATTENTION


def usual(x: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(x, x, x)


def one(x: torch.Tensor) -> torch.Tensor:
    with sdpa_kernel(MATH):
        return scaled_dot_product_attention(x, x, x, scale=0.3)


def one_of_two(x: torch.Tensor) -> torch.Tensor:
    y = usual(x)
    with sdpa_kernel([MATH, FLASH], set_priority=True):
        y = usual(y)
    return usual(y)


def nested(x: torch.Tensor) -> torch.Tensor:
    with sdpa_kernel(MATH):
        with sdpa_kernel([FLASH, MATH]):
            y = usual(x)
        y = usual(y)
    with sdpa_kernel([MATH, FLASH], set_priority=True):
        y = usual(y)
        with sdpa_kernel(FLASH):
            return usual(y)


def stated(model: Model, dtype: torch.dtype = torch.float32) -> list[tuple[list[str], bool] | None]:
    """Per attention of the captured graph its kernels, and whether their order counts."""
    graph_module = through_dynamo(model, values(*SHAPE).to(dtype))
    found = [n for n in ir.calls(graph_module.graph) if "attention" in ir.op_name(n)]
    return [
        (list(n.kwargs["kernels"]), bool(n.kwargs.get("in_order")))
        if "kernels" in n.kwargs
        else None  # type: ignore[arg-type]
        for n in found
    ]


def test_each_attention_states_its_kernels() -> None:
    assert stated(usual) == [None]
    assert stated(one) == [(["MATH"], False)]
    assert stated(one_of_two) == [None, (["MATH", "FLASH_ATTENTION"], True), None]
    assert stated(nested) == [
        (["FLASH_ATTENTION", "MATH"], False),
        (["MATH"], False),
        (["MATH", "FLASH_ATTENTION"], True),
        (["FLASH_ATTENTION"], True),
    ]


def test_the_graph_shows_the_kernels() -> None:
    check_inline(
        format_graph(through_dynamo(one, values(*SHAPE))),
        """\
        %arg0_1 = input args[0] : f32[1, 2, 40, 8]
        %scaled_dot_product_attention = pab_compile.scaled_dot_product_attention(%arg0_1, %arg0_1, %arg0_1, scale=0.3, kernels=['MATH']) : f32[1, 2, 40, 8]
        return %scaled_dot_product_attention
        """,  # noqa: E501
    )


def test_kernels_that_hold_around_the_graph_are_not_stated() -> None:
    with sdpa_kernel(MATH):
        assert stated(one) == [None]


@pytest.mark.parametrize("model", [one, one_of_two, nested])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_the_kernels_compute(model: Model, dtype: torch.dtype, compiler: str) -> None:
    x = values(*SHAPE).to(dtype)
    expected = torch.compile(model, backend=compiler)(x)
    graph_module = through_dynamo(model, x)
    (actual,) = torch.compile(graph_module, backend=compiler)(x)
    assert torch.equal(actual, expected)


def test_another_kernel_would_be_seen() -> None:
    x = values(*SHAPE).bfloat16()
    (actual,) = through_dynamo(one, x)(x)
    assert not torch.equal(actual, scaled_dot_product_attention(x, x, x, scale=0.3))


def test_a_second_capture_changes_nothing() -> None:
    x = values(*SHAPE)
    once = through_dynamo(nested, x)
    assert ops(through_dynamo(lambda y: once(y)[0], x)) == ops(once)


def test_a_kernel_that_cannot_compute_it_is_reported_as_torch_does() -> None:
    def impossible(x: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return usual(x)

    x = values(*SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="No viable backend"):
            impossible(x)
        with pytest.raises(RuntimeError, match="No viable backend"):
            through_dynamo(impossible, x)(x)
