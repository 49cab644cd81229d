"""Outlining: groups of nodes become submodules."""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError

import pytest
import torch
from torch import fx

from helpers.captured import Captured, captured, values
from helpers.golden import check_inline
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.outline import Outlined, extract, outline
from pab_compile.passes.graph.printer import format_graph


def diamond() -> Captured:
    """``sin(x) + cos(x)``, with a scale in between."""

    def model(x):  # type: ignore[no-untyped-def]
        left, right = x.sin(), x.cos()
        return left * right + left, right.exp()

    return captured(model, x=values(2, 3))


def wrap(name: str, outlined: Outlined) -> torch.nn.Module:
    module = torch.nn.Module()
    module.compute = outlined.graph_module
    module.note = f"group {name}:"  # type: ignore[assignment]
    module.forward = outlined.graph_module.forward  # type: ignore[method-assign]
    return module


def outlined(model: Captured, groups: Mapping[str, str]) -> fx.GraphModule:
    return outline(
        model.graph_module, {model.node(name): group for name, group in groups.items()}, wrap
    )


def test_a_group_becomes_a_call_and_its_values_keep_their_names() -> None:
    check_inline(
        format_graph(outlined(diamond(), {"sin": "g", "cos": "g"})),
        """\
        %x = input x : f32[2, 3]
        %g = branch g(%x) : 2 x f32[2, 3]  # group g:
            %sin = aten.sin(%x) : f32[2, 3]
            %cos = aten.cos(%x) : f32[2, 3]
            return %sin, %cos
        %sin = %g[0] : f32[2, 3]
        %cos = %g[1] : f32[2, 3]
        %mul = aten.mul(%sin, %cos) : f32[2, 3]
        %add = aten.add(%mul, %sin) : f32[2, 3]
        %exp = aten.exp(%cos) : f32[2, 3]
        return %add, %exp
        """,
    )


@pytest.mark.parametrize(
    "groups",
    [
        {},
        {"sin": "a", "cos": "b"},
        {"sin": "a", "mul": "a", "add": "a"},
        {"exp": "late", "cos": "early"},
        {"sin": "all", "cos": "all", "mul": "all", "add": "all", "exp": "all"},
    ],
    ids=lambda groups: "+".join(groups) or "nothing",
)
def test_the_outlined_graph_computes_the_same(groups: dict[str, str]) -> None:
    model = diamond()
    found = outlined(model, groups)(*model.args)
    for mine, expected in zip(found, model.eager(), strict=True):
        assert torch.equal(mine, expected)


def test_inputs_and_outputs_of_a_group_stand_in_graph_order() -> None:
    model = diamond()
    nodes = [model.node(name) for name in ("mul", "add", "exp")]
    found = extract(model.graph_module, nodes, nodes[1:])
    assert [node.name for node in found.inputs] == ["sin", "cos"]
    assert [node.name for node in found.outputs] == ["add", "exp"]
    assert [node.name for node in ir.outputs(found.graph_module.graph)] == ["add", "exp"]


def test_facts_about_nodes_survive() -> None:
    model = diamond()
    for node in model.graph.nodes:
        ir.set_binding(node, node.name)
    found = outlined(model, {"sin": "g", "cos": "g"})
    picks = [node for node in found.graph.nodes if ir.is_getitem(node)]
    assert [ir.binding(node) for node in picks] == ["sin", "cos"]
    assert all(ir.tensor(node) is not None for node in picks)
    inner = found.get_submodule("g").compute.graph  # type: ignore[union-attr]
    assert [ir.binding(node) for node in ir.calls(inner)] == ["sin", "cos"]


def test_a_group_waits_for_all_that_it_reads() -> None:
    model = diamond()
    found = outlined(model, {"sin": "g", "exp": "g"})
    order = [node.name for node in found.graph.nodes if node.op in ("call_function", "call_module")]
    assert order.index("cos") < order.index("g") < order.index("mul")


def test_a_group_that_is_not_convex_is_refused() -> None:
    with pytest.raises(CycleError):
        outlined(diamond(), {"sin": "g", "add": "g"})


def test_the_graph_that_is_outlined_is_not_changed() -> None:
    model = diamond()
    before = format_graph(model.graph_module)
    outlined(model, {"sin": "g", "cos": "g"})
    assert format_graph(model.graph_module) == before


def test_tensors_that_the_graph_holds_are_carried_along() -> None:
    table = torch.arange(3.0)
    model = captured(lambda x: x.sin() + table, x=values(2, 3))
    found = outlined(model, {"sin": "g", "add": "g"})
    assert [node.op for node in found.graph.nodes].count("get_attr") == 1
    assert torch.equal(found(*model.args)[0], model.eager()[0])
