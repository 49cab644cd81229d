"""Tracing call by call: what comes out is one trace of everything, and equal calls cost little."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import fx
from torch.nn import functional as F

from helpers.captured import values
from helpers.golden import check_inline
from pab_compile.dynamo import trace_once
from pab_compile.passes.graph import ir
from pab_compile.passes.graph import trace_calls as tracing_calls
from pab_compile.passes.graph.outline import copy_graph
from pab_compile.passes.graph.printer import format_graph
from pab_compile.passes.graph.trace_calls import trace_calls
from pab_compile.passes.graph.tracing import fake, trace_function, trace_pure

Function = Callable[[torch.Tensor, torch.Tensor], Any]


def seen(
    function: Function, dtype: torch.dtype = torch.float32
) -> tuple[fx.GraphModule, list[Any]]:
    """A function as Dynamo sees it, and fake inputs."""
    inputs = [values(4, 4).to(dtype), values(4, 4, seed=1).to(dtype)]
    found: list[Any] = []

    def look(graph_module: fx.GraphModule, given: Sequence[Any]) -> Any:
        found.extend([copy_graph(graph_module), fake(given)])
        return graph_module.forward(*given)

    with torch.no_grad():
        trace_once(function, inputs, {}, look)
    return found[0], found[1]


def traced(
    function: Function, dtype: torch.dtype = torch.float32
) -> tuple[fx.GraphModule | None, fx.GraphModule | None, fx.GraphModule]:
    """A function traced call by call, all at once, and as Dynamo sees it."""
    graph_module, fakes = seen(function, dtype)
    return trace_calls(graph_module, fakes), trace_pure(graph_module, fakes), graph_module


def text(graph_module: fx.GraphModule) -> str:
    """A graph without dead code, and its names numbered in their order."""
    graph_module.graph.eliminate_dead_code(ir.must_stay)
    printed = format_graph(graph_module, lambda _: None)
    number = {name: f"%{n}" for n, name in enumerate(dict.fromkeys(re.findall(r"%\w+", printed)))}
    return re.sub(r"%\w+", lambda found: number[found[0]], printed)


def blocks(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    for _ in range(5):
        a, b = F.silu(x @ w).chunk(2, -1)
        x = torch.cat([a * b, b.float().to(x.dtype)], -1) + (
            torch.arange(4) * torch.tensor(2.0)
        ).to(x.dtype)
    return x


def rotary(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    for _ in range(5):
        y = torch.empty_like(x)
        y[..., 0::2] = x[..., 0::2] * 2
        y[..., 1::2] = x[..., 1::2] * 3
        x = y.contiguous() @ w
        x /= 5.0
    return x


def transposed(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    for _ in range(5):
        y = x @ w
        for part in (y, y.t()):
            x = x + part.reshape(-1)[:4]
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", [blocks, rotary, transposed])
def test_it_gives_one_trace_of_everything(function: Function, dtype: torch.dtype) -> None:
    by_calls, at_once, graph_module = traced(function, dtype)
    assert by_calls is not None
    assert at_once is not None
    assert text(by_calls) == text(at_once)
    inputs = [values(4, 4).to(dtype), values(4, 4, seed=1).to(dtype)]
    assert torch.equal(by_calls(*inputs)[0], graph_module(*inputs)[0])


def gelus(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    for _ in range(9):
        x = F.gelu(x @ w)
    return x


def test_equal_calls_are_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def count(*args: Any) -> Any:
        graph_module = trace_function(*args)
        seen.extend(ir.op_name(node) for node in ir.calls(graph_module.graph))
        return graph_module

    monkeypatch.setattr(tracing_calls, "trace_function", count)
    assert traced(lambda x, w: gelus(x, w).sum(0).sum(0))[0] is not None
    check_inline("\n".join(seen), "matmul\ngelu\nsum\nsum\n")  # sums of two layouts


def shared(x: torch.Tensor, w: torch.Tensor) -> Any:
    a = x * w
    view = a.view(-1)
    a += 1
    return view


def parts(x: torch.Tensor, w: torch.Tensor) -> Any:
    a = x * w
    first, _ = a.chunk(2)
    a += 1
    return a, first


def through_a_part(x: torch.Tensor, w: torch.Tensor) -> Any:
    a = x * w
    first, _ = a.chunk(2)
    first += 1
    return a


def an_input(x: torch.Tensor, w: torch.Tensor) -> Any:
    x.view(-1).add_(1)
    return x * w


def a_new_shape(x: torch.Tensor, w: torch.Tensor) -> Any:
    return (x * w).unsqueeze_(0) * 2


@pytest.mark.parametrize("function", [shared, parts, through_a_part, an_input, a_new_shape])
def test_writes_to_shared_memory_are_left_to_one_trace(
    function: Function, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing_calls, "_OFTEN", 0)
    assert traced(function)[0] is None


def test_a_view_that_nothing_needs_any_more_does_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def used_before(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        a = x * w
        y = a.view(-1).sum()
        a += 1
        return a * y

    monkeypatch.setattr(tracing_calls, "_OFTEN", 0)
    by_calls, at_once, _ = traced(used_before)
    assert by_calls is not None
    assert at_once is not None
    assert text(by_calls) == text(at_once)


def test_modes_that_a_graph_enters_are_left_to_one_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def mapped(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.vmap(lambda row: row * w)(x)

    monkeypatch.setattr(tracing_calls, "_OFTEN", 0)
    monkeypatch.setattr(tracing_calls, "trace_function", lambda *_: pytest.fail("it ran"))
    assert trace_calls(*seen(mapped)) is None


def test_calls_that_seldom_repeat_are_traced_at_once() -> None:
    by_calls, at_once, _ = traced(lambda x, w: (x @ w).sin())
    assert by_calls is None
    assert at_once is not None
