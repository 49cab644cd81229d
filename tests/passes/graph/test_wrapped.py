"""Tensors made of other tensors: a captured graph takes the plain ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import fx

from helpers.captured import captured_module, values
from helpers.scaled import Dispatched, Scaled, quantise
from pab_compile.dynamo import trace_once
from pab_compile.passes.errors import UnsupportedModelError
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.capture import capture
from pab_compile.passes.graph.inputs import Inputs
from pab_compile.passes.graph.printer import format_graph
from pab_compile.passes.graph.tracing import trace_any
from pab_compile.passes.graph.wrapped import is_wrapped, plain_tensors, take_plain


class Layer(torch.nn.Module):
    def __init__(self, kind: type[Dispatched] = Scaled) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
        quantise(self, kind)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def test_a_graph_takes_the_plain_tensors_of_a_weight_and_computes_with_them() -> None:
    torch.manual_seed(0)
    model = captured_module(Layer(), x=values(2, 4))
    taken = {ir.source(node): ir.is_constant_input(node) for node in ir.placeholders(model.graph)}
    assert taken == {
        "layer.weight.values": True,
        "layer.weight.scale": True,
        "layer.bias": True,
        "x": False,
    }
    assert not any(is_wrapped(node.meta.get("val")) for node in model.graph.nodes)
    assert "mul" in [ir.op_name(node) for node in ir.calls(model.graph)]


def test_the_graph_computes_what_the_model_computes() -> None:
    torch.manual_seed(0)
    layer, x = Layer(), values(2, 4)
    found: list[tuple[torch.Tensor, ...]] = []

    def look(graph_module: fx.GraphModule, args: Sequence[Any]) -> Any:
        before = format_graph(graph_module)
        tensors = Inputs.of(graph_module, args).tensors(args)
        found.append(capture(graph_module, args)(*tensors))
        assert format_graph(graph_module) == before
        return graph_module.forward(*args)

    with torch.no_grad():
        trace_once(layer.forward, (x,), {}, look)
        assert torch.equal(found[0][0], layer(x))


def test_a_second_look_takes_them_too() -> None:
    traced = fx.symbolic_trace(lambda w, x: (torch.nn.functional.linear(x, w),))
    weight = Scaled.of(values(3, 4))
    take_plain(traced, [weight, values(2, 4)])
    plain = [tensor for _, tensor in plain_tensors(weight)]
    mode = torch._subclasses.FakeTensorMode()
    fakes = [mode.from_tensor(tensor) for tensor in (*plain, values(2, 4))]
    graph_module = trace_any(traced, fakes)
    assert len(ir.placeholders(graph_module.graph)) == 3
    (result,) = graph_module(*plain, values(2, 4))
    assert torch.equal(result, values(2, 4) @ weight.plain().T)


def test_a_weight_that_only_sees_ops_taken_apart_is_refused_by_its_name() -> None:
    with pytest.raises(UnsupportedModelError, match=r"layer\.weight.*is a Dispatched"):
        captured_module(Layer(Dispatched), x=values(2, 4))


def test_a_tensor_within_a_tensor_is_taken_apart_to_the_end() -> None:
    inner = Scaled.of(values(3, 4))
    outer = Scaled(inner, inner.scale)
    assert [name for name, _ in plain_tensors(outer, "w")] == [
        "w.values.values",
        "w.values.scale",
        "w.scale",
    ]


@pytest.mark.parametrize("tensor", [values(2), torch.nn.Parameter(values(2))])
def test_plain_tensors_are_left_as_they_are(tensor: torch.Tensor) -> None:
    assert not is_wrapped(tensor)
    ((name, same),) = plain_tensors(tensor, "w")
    assert same is tensor
    assert name == "w"
    traced = fx.symbolic_trace(lambda w: (w + 1,))
    before = format_graph(traced)
    take_plain(traced, [tensor])
    assert format_graph(traced) == before
