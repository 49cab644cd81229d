"""Written graphs: the text of a traced graph gives the same graph, and anything else none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from pab_compile.dynamo import trace_once
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.capture import capture
from pab_compile.passes.graph.origin import module_path, source_line
from pab_compile.passes.graph.printer import format_graph
from pab_compile.passes.graph.trace import trace
from pab_compile.passes.graph.tracing import changes_torch
from pab_compile.passes.graph.written import NotWritableError, describe, read, write


def dynamo_graph(function: Any, *args: Any) -> tuple[fx.GraphModule, list[torch.Tensor]]:
    """The one graph that Dynamo makes of a call, and its inputs."""
    found: list[tuple[fx.GraphModule, Sequence[Any]]] = []

    def look(graph: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        found.append((graph, inputs))
        return graph(*inputs)

    trace_once(function, args, {}, look)
    ((graph, inputs),) = found
    return graph, list(inputs)


class Block(torch.nn.Module):
    """Ops of several kinds: several outputs, constants, dtypes, slices and a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(8)
        self.project = torch.nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v = self.project(self.norm(x)).chunk(3, dim=-1)
        with sdpa_kernel(SDPBackend.MATH):
            x = x + torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3)
        table = torch.tensor([0.5, float("inf")])[:1] * torch.arange(8)
        return x[:, 1:].to(torch.bfloat16), (x * table).transpose(1, 2)


def traced() -> tuple[fx.GraphModule, list[torch.Tensor], fx.GraphModule]:
    graph, args = dynamo_graph(Block(), torch.randn(2, 3, 8))
    return graph, args, trace(graph, args)


def test_a_graph_is_read_as_it_was_written() -> None:
    _, args, graph = traced()
    text = write(graph)
    again = read(text)
    assert write(again) == text
    assert format_graph(again) == format_graph(graph)
    for node, other in zip(graph.graph.nodes, again.graph.nodes, strict=True):
        assert ir.layouts(node) == ir.layouts(other)
        assert (module_path(node), source_line(node)) == (
            module_path(other),
            source_line(other),
        )
    for one, two in zip(graph(*args), again(*args), strict=True):
        assert torch.equal(one, two)


def test_the_capture_of_what_was_read_is_the_capture() -> None:
    graph, args, _ = traced()
    expected = capture(graph, args)
    found = capture(graph, args, lambda *given: read(write(trace(*given))))
    assert "kernels=['MATH']" in format_graph(expected)
    assert format_graph(found) == format_graph(expected)
    assert list(map(ir.source, ir.placeholders(found.graph))) == list(
        map(ir.source, ir.placeholders(expected.graph))
    )


def changed(tensors: list[torch.Tensor], how: str) -> list[torch.Tensor]:
    other: dict[str, Any] = {
        "size": lambda: torch.randn(2, 4, 8),
        "stride": lambda: torch.randn(3, 2, 8).transpose(0, 1),
        "dtype": lambda: torch.randn(2, 3, 8, dtype=torch.float64),
        "gradient": lambda: torch.randn(2, 3, 8, requires_grad=True),
        "same sizes": lambda: torch.randn(2, 3, 8),
    }
    places = [n for n, tensor in enumerate(tensors) if tensor.shape == (2, 3, 8)]
    return [other[how]() if n in places else tensor for n, tensor in enumerate(tensors)]


@pytest.mark.parametrize("how", ["size", "stride", "dtype", "gradient"])
def test_the_description_names_what_a_trace_depends_on(how: str) -> None:
    graph, args, _ = traced()
    args = [arg.detach() for arg in args]
    assert describe(graph, changed(args, how)) != describe(graph, args)


def test_the_description_leaves_values_out_and_constants_in() -> None:
    graph, args, _ = traced()
    args = [arg.detach() for arg in args]
    assert describe(graph, changed(args, "same sizes")) == describe(graph, args)
    other, _ = dynamo_graph(Block(), torch.randn(2, 3, 8))
    assert describe(other, args) == describe(graph, args)  # a second trace by Dynamo
    scale = next(node for node in graph.graph.nodes if "scale" in node.kwargs)
    scale.kwargs = {**scale.kwargs, "scale": 0.31}
    assert describe(graph, args) != describe(other, args)


def test_inputs_that_share_memory_are_told_apart_from_others() -> None:
    def double(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    one, other = torch.randn(4), torch.randn(4)
    graph, _ = dynamo_graph(double, one, other)
    assert describe(graph, [one, one.view(4)]) != describe(graph, [one, other])


def test_an_op_that_is_not_torchs_has_no_text() -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(json.dumps, (graph.placeholder("x"),)))
    module = fx.GraphModule(torch.nn.Module(), graph)
    with pytest.raises(NotWritableError, match="a call of"):
        describe(module, [torch.zeros(1)])
    with pytest.raises(NotWritableError, match="a call of"):
        write(module)


def test_torch_that_somebody_changed_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not changes_torch()
    with torch.device("meta"):
        assert changes_torch()
    monkeypatch.setattr(torch.nn.functional, "silu", lambda x: x)
    assert changes_torch()


@pytest.mark.parametrize("target", ["os.system.default", "aten.nothing.default", "aten.add"])
def test_a_text_with_another_op_is_refused(target: str) -> None:
    _, _, graph = traced()
    found = json.loads(write(graph))
    call = next(node for node in found["nodes"] if node[0] == "call_function")
    call[2] = target
    with pytest.raises((ValueError, AttributeError)):
        read(json.dumps(found))
