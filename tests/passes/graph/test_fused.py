"""Fused sums: taken apart for the passes, put together for the inner compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from helpers.captured import Captured, captured, ops, values
from helpers.golden import check_inline
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.fused import put_together, take_apart
from pab_compile.passes.graph.printer import format_graph

Sum = Callable[[Any, Any, Any], Any]

SUMS: dict[str, tuple[Sum, str, str]] = {
    "addcmul": (lambda x, y, g: torch.addcmul(x, y, g), "addcmul", "mul add"),
    "addcmul, value": (
        lambda x, y, g: torch.addcmul(x, y, g, value=0.3),
        "addcmul",
        "mul mul add",
    ),
    "addcdiv": (lambda x, y, g: torch.addcdiv(x, y, g, value=3), "addcdiv", "div mul add"),
    "addmm": (
        lambda x, y, g: torch.addmm(x[0], y[0], y[1], beta=2, alpha=0.3),
        "select select select addmm",
        "select select select mul mm mul add",
    ),
    "baddbmm": (lambda x, y, g: torch.baddbmm(x, y, y), "baddbmm", "bmm add"),
    "lerp": (lambda x, y, g: torch.lerp(x, y, g), "lerp", "rsub mul mul add"),
    "lerp, number": (lambda x, y, g: torch.lerp(x, y, 0.3), "lerp", "mul mul add"),
    "add": (lambda x, y, g: torch.add(x, y, alpha=0.3), "add", "mul add"),
    "sub": (lambda x, y, g: torch.sub(x, y, alpha=3), "sub", "mul sub"),
    "rsub": (lambda x, y, g: torch.rsub(y, x), "rsub", "sub"),
    "addcmul_": (lambda x, y, g: x.clone().addcmul_(y, g), "clone addcmul", "clone mul add"),
}


def model(function: Sum, dtype: torch.dtype) -> Captured:
    def sums(x, y, g):  # type: ignore[no-untyped-def]
        return function(x, y, g)

    args = {"x": values(2, 6, 6), "y": values(2, 6, 6, seed=1), "g": values(6, seed=2)}
    return captured(sums, **{name: arg.to(dtype) for name, arg in args.items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SUMS)
def test_a_fused_sum_is_taken_apart_and_put_together_bit_for_bit(
    name: str, dtype: torch.dtype
) -> None:
    function, whole, parts = SUMS[name]
    found = model(function, dtype)
    assert ops(found.graph_module) == parts.split()
    expected = found.eager()[0]
    apart = found.graph_module(*found.args)[0]
    rounding = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(apart, expected, rtol=rounding, atol=rounding)
    assert put_together(found.graph_module) == 1
    found.graph.lint()
    assert ops(found.graph_module) == whole.split()
    assert torch.equal(found.graph_module(*found.args)[0], expected)
    assert put_together(found.graph_module) == 0
    assert take_apart(found.graph_module) == 1
    assert ops(found.graph_module) == parts.split()


def test_the_parts_carry_the_facts_of_the_sum() -> None:
    found = model(SUMS["addcmul, value"][0], torch.bfloat16)
    check_inline(
        format_graph(found.graph_module),
        """\
        %x = input x : bf16[2, 6, 6]
        %y = input y : bf16[2, 6, 6]
        %g = input g : bf16[6]
        %addcmul_part = aten.mul(%y, %g) : bf16[2, 6, 6]
        %addcmul_part_1 = aten.mul(%addcmul_part, 0.3) : bf16[2, 6, 6]
        %addcmul = aten.add(%x, %addcmul_part_1) : bf16[2, 6, 6]
        return %addcmul
        """,
    )


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x, y, g: torch.addcmul(x.int(), y.int(), g.int()), id="whole numbers"),
        pytest.param(lambda x, y, g: torch.addmm(x[0], y[0], y[1], beta=0), id="not read"),
        pytest.param(lambda x, y, g: x + y, id="nothing is multiplied"),
        pytest.param(lambda x, y, g: torch.add(x, 2, alpha=3), id="a number"),
    ],
)
def test_other_sums_stay_as_they_are(function: Sum) -> None:
    found = model(function, torch.float32)
    assert take_apart(found.graph_module) == 0
    assert torch.equal(found.graph_module(*found.args)[0], found.eager()[0])


def test_what_else_reads_a_part_keeps_the_parts() -> None:
    found = model(SUMS["addcmul"][0], torch.float32)
    product = next(ir.calls(found.graph))
    (total,) = product.users
    ir.output_node(found.graph).args = ((total, product),)
    assert put_together(found.graph_module) == 0


def test_parts_that_were_given_other_operands_make_a_sum_of_these() -> None:
    found = model(SUMS["lerp"][0], torch.float32)
    x, y, g = found.graph.find_nodes(op="placeholder")
    for node in ir.calls(found.graph):
        node.replace_input_with(y, x)
    assert put_together(found.graph_module) == 1
    (lerp,) = ir.calls(found.graph)
    assert lerp.args == (x, x, g)


def test_a_weight_that_differs_between_the_parts_keeps_them() -> None:
    found = model(SUMS["lerp"][0], torch.float32)
    g = list(found.graph.find_nodes(op="placeholder"))[2]
    with found.graph.inserting_after(g):
        other = found.graph.call_function(torch.ops.aten.sin.default, (g,))
    product = next(n for n in g.users if n.name == "lerp_part_2")
    product.replace_input_with(g, other)
    assert put_together(found.graph_module) == 0
