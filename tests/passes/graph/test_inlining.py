"""Inlining: what a checkpoint wraps stands in the graph itself, and a plain view is its tensor."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.utils.checkpoint import checkpoint

from helpers.captured import values
from helpers.golden import check_inline
from pab_compile.dynamo import trace_once
from pab_compile.passes.graph.inlining import inline_calls
from pab_compile.passes.graph.outline import copy_graph


def inner(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.sin() + y, x * 2


def outer(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    one, two = checkpoint(inner, x, y, use_reentrant=False)
    return one - two


region = torch.compiler.nested_compile_region(inner)


def regions(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    one, two = region(x, y)
    return region(one, two)[0]


def nested(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return checkpoint(outer, x, y, use_reentrant=False) + 1


def viewed(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x @ torch.Tensor._make_subclass(torch.Tensor, y, False)


def dynamo_graph(function: Any, *args: torch.Tensor) -> Any:
    """Dynamo's graph of a call, with its ``inputs``."""
    found: list[fx.GraphModule] = []

    def look(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        found.append(copy_graph(graph_module))
        found[0].inputs = inputs  # type: ignore[assignment]
        return graph_module.forward(*inputs)

    with torch.no_grad():
        trace_once(function, args, {}, look)
    return found[0]


def targets(graph_module: fx.GraphModule) -> list[str]:
    return [
        getattr(node.target, "__name__", str(node.target))
        for node in graph_module.graph.nodes
        if node.op.startswith("call_")
    ]


def test_the_body_of_a_checkpoint_takes_its_place() -> None:
    x, y = values(3, 3), values(3, 3, seed=1)
    graph_module = dynamo_graph(outer, x, y)
    before = "\n".join(targets(graph_module))
    assert inline_calls(graph_module) == 1
    check_inline(
        f"{before}\n->\n" + "\n".join(targets(graph_module)),
        """\
tag_activation_checkpoint
getitem
getitem
sub
->
sin
add
mul
sub
""",
    )
    assert torch.equal(graph_module(x, y)[0], outer(x, y))


def test_the_body_of_a_region_takes_the_place_of_every_call() -> None:
    x, y = values(3, 3), values(3, 3, seed=1)
    graph_module = dynamo_graph(regions, x, y)
    assert targets(graph_module).count("invoke_subgraph") == 2
    assert inline_calls(graph_module) == 2
    assert targets(graph_module) == ["sin", "add", "mul"] * 2
    assert torch.equal(graph_module(x, y)[0], regions(x, y))


def test_checkpoints_in_checkpoints_are_inlined_in_every_type() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x, y = values(3, 3).to(dtype), values(3, 3, seed=1).to(dtype)
        graph_module = dynamo_graph(nested, x, y)
        assert inline_calls(graph_module) >= 1
        assert "tag_activation_checkpoint" not in targets(graph_module)
        assert torch.equal(graph_module(x, y)[0], nested(x, y))


def test_constants_of_a_body_come_along() -> None:
    inside = fx.Graph()
    x = inside.placeholder("x")
    scaled = inside.call_function(torch.mul, (x, inside.get_attr("scale")))
    inside.output((scaled,))
    root = torch.nn.Module()
    root.register_buffer("scale", values(3, 3, seed=1))
    outside = fx.Graph()
    x = outside.placeholder("x")
    body = outside.get_attr("body")
    call = outside.call_function(torch.ops.higher_order.tag_activation_checkpoint, (body, x))
    outside.output((outside.call_function(operator.getitem, (call, 0)),))
    holder = torch.nn.Module()
    holder.body = fx.GraphModule(root, inside)
    graph_module = fx.GraphModule(holder, outside)
    assert inline_calls(graph_module) == 1
    (result,) = graph_module(values(3, 3))
    assert torch.equal(result, values(3, 3) * values(3, 3, seed=1))


def test_a_plain_view_of_a_tensor_is_that_tensor() -> None:
    x, y = values(3, 3), values(3, 3, seed=1)
    graph_module = dynamo_graph(viewed, x, torch.nn.Parameter(y, requires_grad=False))
    assert inline_calls(graph_module) == 1
    assert "Tensor" not in targets(graph_module)
    (result,) = graph_module(*graph_module.inputs)
    assert torch.equal(result, x @ y)


def test_other_calls_stay_and_so_does_a_graph_that_was_inlined() -> None:
    x, y = values(3, 3), values(3, 3, seed=1)
    graph_module = dynamo_graph(lambda x, y: x.add_(y).sin(), x, y)
    assert inline_calls(graph_module) == 0
    graph_module = dynamo_graph(outer, x, y)
    inline_calls(graph_module)
    before = targets(graph_module)
    assert inline_calls(graph_module) == 0
    assert targets(graph_module) == before
