"""Capture: a Dynamo graph becomes a functional, pre-dispatch ATen graph."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import dropout

import helpers.captured as models
from helpers.captured import captured, ops, through_dynamo, values
from helpers.golden import check_inline
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.capture import capture
from pab_compile.passes.graph.inputs import Inputs
from pab_compile.passes.graph.noise import remove_noise
from pab_compile.passes.graph.origin import module_path, source_line
from pab_compile.passes.graph.printer import format_graph
from pab_compile.passes.graph.tracing import trace_any, trace_pure

EVERY_MODEL = [
    models.gated_attention,
    models.mlp_block,
    models.parallel_block,
    models.cross_attention,
    models.two_prompts,
    models.joint_attention,
    models.batch_loop,
    models.no_residual,
    models.widening,
]


class Attention(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.softmax(-1)


class TwoBlocks(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Attention(), Attention()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_attention_linear_and_views_stay_single_nodes() -> None:
    check_inline(
        format_graph(captured(models.gated_attention).graph_module),
        """\
        %latents = input latents : f32[2, 4, 3, 2, 5]
        %timestep = input timestep : f32[2]
        %w_in = weight w_in : f32[4, 4]
        %w_time = weight w_time : f32[4, 4]
        %w_qkv = weight w_qkv : f32[4, 4]
        %w_out = weight w_out : f32[4, 4]
        %permute = aten.permute(%latents, [0, 2, 3, 4, 1]) : f32[2, 3, 2, 5, 4]
        %view = aten.view(%permute, [2, 30, 4]) : f32[2, 30, 4]
        %linear = aten.linear(%view, %w_in) : f32[2, 30, 4]
        %unsqueeze = aten.unsqueeze(%timestep, 1) : f32[2, 1]
        %expand = aten.expand(%unsqueeze, [2, 4]) : f32[2, 4]
        %sin = aten.sin(%expand) : f32[2, 4]
        %linear_1 = aten.linear(%sin, %w_time) : f32[2, 4]
        %unsqueeze_1 = aten.unsqueeze(%linear_1, 1) : f32[2, 1, 4]
        %mul = aten.mul(%linear, %unsqueeze_1) : f32[2, 30, 4]
        %linear_2 = aten.linear(%mul, %w_qkv) : f32[2, 30, 4]
        %silu = aten.silu(%unsqueeze_1) : f32[2, 1, 4]
        %attend = aten.scaled_dot_product_attention(%linear_2, %linear_2, %linear_2) : f32[2, 30, 4]
        %linear_3 = aten.linear(%attend, %w_out) : f32[2, 30, 4]
        %mul_1 = aten.mul(%silu, %linear_3) : f32[2, 30, 4]
        %add = aten.add(%linear, %mul_1) : f32[2, 30, 4]
        %view_1 = aten.view(%add, [2, 3, 2, 5, 4]) : f32[2, 3, 2, 5, 4]
        %permute_1 = aten.permute(%view_1, [0, 4, 1, 2, 3]) : f32[2, 4, 3, 2, 5]
        return %permute_1
        """,
    )


@pytest.mark.parametrize("model", EVERY_MODEL, ids=lambda f: f.__name__)
def test_the_captured_graph_computes_what_the_function_computes(
    model: Callable[..., torch.Tensor],
) -> None:
    found = captured(model)
    for mine, expected in zip(found.graph_module(*found.args), found.eager(), strict=True):
        assert torch.equal(mine, expected)


def test_inputs_keep_their_order_and_know_whether_they_are_weights() -> None:
    inputs = ir.placeholders(captured(models.mlp_block).graph)
    assert [(ir.source(node), ir.is_constant_input(node)) for node in inputs] == [
        ("latents", False),
        ("timestep", False),
        ("w_in", True),
        ("w_time", True),
        ("w_out", True),
        ("w_up", True),
        ("w_down", True),
    ]


def test_inputs_are_named_in_the_words_of_the_caller() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = torch.nn.Linear(3, 3)
            self.register_buffer("table", torch.ones(3))

        def forward(self, hidden_states: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
            return self.proj(hidden_states + extra["image"]) * self.table

    call = Model().forward
    found = through_dynamo(call, hidden_states=values(2, 3), extra={"image": values(2, 3)})
    inputs = ir.placeholders(found.graph)
    free = [ir.source(node) for node in inputs if not ir.is_constant_input(node)]
    assert free == ["hidden_states", "image"]
    held = [ir.source(node) for node in inputs if ir.is_constant_input(node)]
    assert len(held) == 3
    assert all("proj" in name or "table" in name for name in held)


def test_every_call_knows_its_module() -> None:
    found = through_dynamo(TwoBlocks().forward, values(2, 3))
    assert [module_path(node) for node in ir.calls(found.graph)] == ["blocks.0", "blocks.1"]


def test_every_call_knows_its_line() -> None:
    for node in ir.calls(through_dynamo(TwoBlocks().forward, values(2, 3)).graph):
        line = source_line(node)
        assert line.startswith("test_capture.py:")
        assert line.endswith("in forward: return x.softmax(-1)")


def test_dropout_in_eval_leaves_nothing_and_in_training_stays() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return dropout(x, 0.5, False) + dropout(x, 0.0, True)

    def training(x: torch.Tensor) -> torch.Tensor:
        return dropout(x, 0.5, True)

    assert ops(captured(model, x=values(2, 3)).graph_module) == ["add"]
    assert ops(captured(training, x=values(2, 3)).graph_module) == ["dropout"]


@pytest.mark.parametrize("writes", [False, True])
def test_an_op_of_others_is_taken_apart_where_it_says_what_it_is_made_of(writes: bool) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        if writes:
            x.add_(1)
        return torch.ops.pab_capture.opaque(torch.ops.pab_capture.made_of_others(x))

    with torch.library._scoped_library("pab_capture", "DEF") as library:
        library.define("made_of_others(Tensor x) -> Tensor")
        library.impl("made_of_others", lambda x: x.sin() * 2, "CompositeImplicitAutograd")
        library.define("opaque(Tensor x) -> Tensor")
        library.impl("opaque", lambda x: x.clone(), "CompositeExplicitAutograd")
        graph_module = through_dynamo(function, torch.ones(3))
    assert ops(graph_module)[-3:] == ["sin", "mul", "opaque"]


def test_aliases_and_dead_code_leave_nothing() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        x.exp()
        return x.detach().sin()

    assert ops(captured(model, x=values(2, 3)).graph_module) == ["sin"]


def test_a_cast_to_the_type_of_another_tensor_no_longer_reads_it() -> None:
    def model(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return x.sin().type_as(like) + x.type_as(x)

    same = captured(model, x=values(2, 3), like=values(4))
    assert ops(same.graph_module) == ["sin", "add"]
    other = captured(model, x=values(2, 3), like=values(4).double())
    assert ops(other.graph_module) == ["sin", "_to_copy", "add"]
    assert not other.node("like").users
    assert torch.equal(other.graph_module(*other.args)[0], other.eager()[0])


def test_removing_noise_twice_removes_nothing_the_second_time() -> None:
    found = captured(models.gated_attention)
    assert remove_noise(found.graph_module) == 0


def test_writing_in_place_becomes_functional() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y.add_(1)
        return y

    found = captured(model, x=values(2, 3))
    assert ops(found.graph_module) == ["mul", "add"]
    assert torch.equal(found.graph_module(*found.args)[0], found.eager()[0])


def test_a_region_of_no_grad_is_inlined() -> None:
    def model(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = x @ w
        return y + 1

    assert ops(through_dynamo(model, values(2, 3), values(3, 3))) == ["matmul", "add"]


def test_entries_of_a_list_are_named_after_it() -> None:
    def model(pictures: list[torch.Tensor], extra: dict[str, Any]) -> torch.Tensor:
        return pictures[0] + pictures[1] + extra["pairs"][1][0]

    entry = values(2, 3)
    found = through_dynamo(
        model, pictures=[values(2, 3), entry], extra={"pairs": (0, [values(2, 3)])}
    )
    names = [ir.source(node) for node in ir.placeholders(found.graph)]
    assert names == ["pictures[0]", "pictures[1]", "pairs[1][0]"]


def test_sizes_become_constants() -> None:
    graph = fx.Graph()
    size, x = graph.placeholder("size"), graph.placeholder("x")
    graph.output((graph.call_method("reshape", (x, size, -1)),))
    args = [2, values(4, 3)]
    dynamo_graph = fx.GraphModule(torch.nn.Module(), graph)
    found = capture(dynamo_graph, args)
    check_inline(
        format_graph(found),
        """\
        %arg0_1 = input x : f32[4, 3]
        %view = aten.view(%arg0_1, [2, -1]) : f32[2, 6]
        return %view
        """,
    )
    inputs = Inputs.of(dynamo_graph, args)
    assert [t.shape for t in inputs.tensors(args)] == [(4, 3)]
    assert inputs.specialisation(args) == (2,)


def test_tensors_that_the_graph_holds_stay_attributes() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(3.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.table

    model = Model()
    traced = fx.symbolic_trace(model)
    traced.graph.output_node().args = ((traced.graph.output_node().args[0],),)
    found = capture(traced, [values(2, 3)])
    assert len(ir.placeholders(found.graph)) == 1
    assert len(list(found.graph.find_nodes(op="get_attr"))) == 1
    assert torch.equal(found(values(2, 3))[0], model(values(2, 3)))


def test_the_graph_that_is_captured_is_not_changed() -> None:
    traced = fx.symbolic_trace(lambda x: (dropout(x, 0.5, False),))
    before = str(traced.graph)
    capture(traced, [values(2, 3)])
    assert str(traced.graph) == before


def test_meta_and_fake_tensors_are_captured_like_real_ones() -> None:
    traced = fx.symbolic_trace(lambda x: (x.softmax(-1),))
    real = format_graph(capture(traced, [values(2, 3)]))
    meta = format_graph(capture(traced, [torch.empty(2, 3, device="meta")]))
    with torch._subclasses.FakeTensorMode():
        fake = format_graph(capture(traced, [torch.empty(2, 3)]))
    assert real == meta == fake


def in_place(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    z = torch.nn.functional.layer_norm(x, (4,)) @ y.mT
    z.narrow(-1, 1, 3).add_(1)
    return (z.chunk(2, -1)[0], z.softmax(-1).contiguous())


def writing(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x.add_(1)
    return (x @ y.mT, y)


def looks(function: Callable[..., Any]) -> tuple[fx.GraphModule | None, fx.GraphModule]:
    graph = fx.symbolic_trace(function)
    fakes = FakeTensorMode()
    inputs = [fakes.from_tensor(torch.zeros(2, 6, 4)) for _ in range(2)]
    return trace_pure(graph, inputs), trace_any(graph, inputs)


def test_one_look_at_a_graph_gives_what_two_looks_give() -> None:
    once, twice = looks(in_place)
    assert once is not None
    for graph_module in (once, twice):
        remove_noise(graph_module)
    text = [re.sub(r"%\w+", "%", format_graph(g, lambda _: None)) for g in (once, twice)]
    assert text[0] == text[1]


def test_a_graph_that_writes_to_an_input_takes_two_looks() -> None:
    once, twice = looks(writing)
    assert once is None
    assert len(ir.outputs(twice.graph)) == 3
