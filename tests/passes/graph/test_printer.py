"""Graphs as text."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from helpers.golden import check_golden, check_inline
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.printer import diff_text, format_graph, format_node

aten = torch.ops.aten


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


class Builder:
    """Builds a graph node by node, each with its fake value."""

    def __init__(self) -> None:
        self.graph = fx.Graph()

    def input(self, name: str, val: Any, source: str = "", weight: bool = False) -> fx.Node:
        node = self.graph.placeholder(name)
        ir.set_value(node, val)
        ir.set_source(node, source or name)
        ir.set_constant_input(node, weight)
        return node

    def call(self, target: Any, *args: Any, val: Any = None, **kwargs: Any) -> fx.Node:
        name = getattr(target, "_opname", target.__name__)
        node = self.graph.create_node("call_function", target, args, kwargs, name)
        ir.set_value(node, val)
        return node

    def module(self, *outputs: Any, root: torch.nn.Module | None = None) -> fx.GraphModule:
        self.graph.output(tuple(outputs))
        return fx.GraphModule(root or torch.nn.Module(), self.graph)


class Branch(torch.nn.Module):
    """What a step-conditioned branch looks like from outside."""

    def __init__(self, compute: fx.GraphModule, note: str | None = None) -> None:
        super().__init__()
        self.compute = compute
        if note is not None:
            self.note = note


def linear_block(name: str = "x") -> fx.GraphModule:
    build = Builder()
    x = build.input(name, meta(6, 24, 8))
    w = build.input("w", meta(8, 8), "proj.weight", weight=True)
    return build.module(build.call(aten.linear.default, x, w, val=meta(6, 24, 8)))


def branch_model(inner: str = "x", note: str | None = None) -> fx.GraphModule:
    build = Builder()
    x = build.input("x", meta(6, 24, 8), "hidden_states")
    w = build.input("w", meta(8, 8), "proj.weight", weight=True)
    root = torch.nn.Module()
    root.add_module("spatial_0", Branch(linear_block(inner), note))
    branch = build.graph.create_node("call_module", "spatial_0", (x, w), {}, "spatial_0")
    ir.set_value(branch, (meta(6, 24, 8),))
    out = build.call(operator.getitem, branch, 0, val=meta(6, 24, 8))
    return build.module(out, root=root)


def test_one_line_per_node_with_source_and_type() -> None:
    check_inline(
        format_graph(linear_block()),
        """\
        %x = input x : f32[6, 24, 8]
        %w = weight proj.weight : f32[8, 8]
        %linear = aten.linear(%x, %w) : f32[6, 24, 8]
        return %linear
        """,
    )


def test_a_branch_prints_its_graph_below_the_call() -> None:
    check_inline(
        format_graph(branch_model()),
        """\
        %x = input hidden_states : f32[6, 24, 8]
        %w = weight proj.weight : f32[8, 8]
        %spatial_0 = branch spatial_0(%x, %w) : (f32[6, 24, 8])  # reuse: load cache | otherwise:
            %linear = aten.linear(%x, %w) : f32[6, 24, 8]
            return %linear
        %getitem = %spatial_0[0] : f32[6, 24, 8]
        return %getitem
        """,
    )


def test_a_branch_says_what_its_inputs_are_bound_to_and_its_own_note() -> None:
    check_inline(
        format_graph(branch_model(inner="y", note="once per prompt:")),
        """\
        %x = input hidden_states : f32[6, 24, 8]
        %w = weight proj.weight : f32[8, 8]
        %spatial_0 = branch spatial_0(%x, %w) : (f32[6, 24, 8])  # once per prompt:
            %y = %x : f32[6, 24, 8]
            %linear = aten.linear(%y, %w) : f32[6, 24, 8]
            return %linear
        %getitem = %spatial_0[0] : f32[6, 24, 8]
        return %getitem
        """,
    )


def test_a_module_without_a_graph_is_one_line() -> None:
    build = Builder()
    x = build.input("x", meta(2))
    root = torch.nn.Module()
    root.add_module("act", torch.nn.ReLU())
    call = build.graph.create_node("call_module", "act", (x,), {}, "y")
    check_inline(
        format_graph(build.module(call, root=root)),
        """\
        %x = input x : f32[2]
        %y = module act(%x)
        return %y
        """,
    )


def test_axis_names_stand_in_place_of_sizes_where_they_are_known() -> None:
    def names(node: fx.Node) -> Sequence[str] | None:
        return ["b*t", "h*w", "c"] if node.name in ("x", "linear") else None

    check_inline(
        format_graph(linear_block(), names),
        """\
        %x = input x : f32[b*t, h*w, c]
        %w = weight proj.weight : f32[8, 8]
        %linear = aten.linear(%x, %w) : f32[b*t, h*w, c]
        return %linear
        """,
    )


def test_arguments_and_values_of_every_sort_are_short() -> None:
    build = Builder()
    x = build.input("x", meta(4, 8, dtype=torch.bfloat16))
    n = build.input("n", 3)
    flag = build.input("flag", True)
    unknown = build.input("unknown", None)
    chunks = build.call(aten.chunk.default, x, 2, -1, val=[meta(4, 4), meta(4, 4)])
    first = build.call(operator.getitem, chunks, 0, val=meta(4, 4))
    mixed = build.call(aten.topk.default, x, 1, val=(meta(4, 1), meta(4, 1, dtype=torch.int64)))
    cut = build.call(aten.slice.Tensor, x, 0, 1, 9223372036854775807, val=meta(3, 8))
    wide = build.call(
        aten._to_copy.default, cut, dtype=torch.float32, device=torch.device("cpu"), val=meta(3, 8)
    )
    added = build.call(aten.add.Tensor, wide, 1e-05, alpha=2, val=meta(3, 8))
    viewed = build.call(aten.view.default, added, [n, -1], val=meta(3, 8))
    gelu = build.call(aten.gelu.default, viewed, approximate="tanh", val=meta(3, 8))
    count = build.call(operator.mul, n, 2, val=6)
    picked = build.call(operator.getitem, gelu, (slice(None, 2), Ellipsis), val=meta(2, 8))
    permuted = build.graph.call_method("permute", (picked, 1, 0))
    module = build.module(first, mixed, count, permuted, flag, unknown, None)
    check_golden("printer_arguments", format_graph(module))


def test_symbolic_sizes_print_as_their_expression() -> None:
    seen: list[str] = []

    def backend(graph_module: fx.GraphModule, example_inputs: list[Any]) -> fx.GraphModule:
        for node in graph_module.graph.nodes:
            ir.set_value(node, node.meta.get("example_value"))
        seen.append(format_graph(graph_module))
        return graph_module

    def double(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0] * 2, -1)

    torch.compile(double, backend=backend, dynamic=True)(torch.ones(3, 4))
    sizes = [line for line in seen[0].splitlines() if ".reshape(" in line]
    assert len(sizes) == 1
    assert re.search(r" : f32\[2\*s\d+, \(s\d+//2\)\]$", sizes[0]), sizes


def test_text_of_a_graph_is_the_same_twice_and_after_a_copy() -> None:
    module = branch_model()
    copy = fx.GraphModule(module, module.graph)
    assert format_graph(module) == format_graph(module) == format_graph(copy)


def test_format_node_prints_one_line() -> None:
    node = next(
        iter(linear_block().graph.find_nodes(op="call_function", target=aten.linear.default))
    )
    assert format_node(node) == "%linear = aten.linear(%x, %w) : f32[6, 24, 8]"


def test_diff_shows_what_changed_and_nothing_else() -> None:
    module = linear_block()
    before = format_graph(module)
    linear = module.graph.find_nodes(op="call_function", target=aten.linear.default)[0]
    with module.graph.inserting_after(linear):
        relu = module.graph.create_node("call_function", aten.relu.default, (linear,), name="relu")
    linear.replace_all_uses_with(relu, delete_user_cb=lambda user: user is not relu)
    check_inline(
        diff_text(before, format_graph(module)),
        """\
        @@
         %linear = aten.linear(%x, %w) : f32[6, 24, 8]
        -return %linear
        +%relu = aten.relu(%linear)
        +return %relu
        """,
    )


def test_diff_of_equal_texts_is_empty() -> None:
    assert diff_text("a\nb\n", "a\nb\n") == ""
