"""No captured graph holds a tensor of its tracer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

import pab_compile
from helpers.eager_code import RANGES, calls, compiled, make
from pab_compile.errors import InvariantError
from pab_compile.passes.graph import capture as capturing
from pab_compile.passes.graph.constants import check_constants


@pytest.fixture
def no_inlining(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the library did not know constructors: the tracer does not see them."""
    monkeypatch.setattr(capturing, "inline_calls", lambda graph_module: 0)


@pytest.mark.sample("ranges0")
@pytest.mark.usefixtures("no_inlining")
@pytest.mark.parametrize("ranges", [{}, RANGES])
def test_a_constant_of_the_tracer_is_an_error_that_says_what_to_do(ranges: dict[str, int]) -> None:
    model = make("a plain view of a weight")
    with pytest.raises(
        InvariantError, match=r"tensor of the tracer .*eager_code.py:\d+.*Make that"
    ):
        compiled(model, ranges)(*next(calls()))
    with pytest.raises(InvariantError, match="tensor of the tracer"):
        pab_compile.explain(model, *next(calls()))


@pytest.mark.usefixtures("no_inlining")
def test_the_model_still_runs_without_reuse() -> None:
    model = make("a plain view of a weight")
    inputs = next(calls())
    passed = compiled(model, RANGES, on_unsupported="passthrough")
    with pytest.warns(UserWarning, match="tensor of the tracer"):
        assert torch.equal(passed(*inputs), model(*inputs))


def graph_with(constant: torch.Tensor, inside: bool) -> fx.GraphModule:
    def make_graph(root: dict[str, Any], name: str) -> fx.GraphModule:
        graph = fx.Graph()
        graph.output((graph.call_function(torch.neg, (graph.get_attr(name),)),))
        return fx.GraphModule(root, graph)

    inner = make_graph({"held": constant}, "held")
    return make_graph({"mask": inner}, "mask") if inside else inner


@pytest.mark.parametrize("inside", [False, True])
def test_constants_are_looked_at_in_inner_graphs_too(inside: bool) -> None:
    check_constants(graph_with(torch.ones(2), inside))
    with torch._subclasses.FakeTensorMode():
        fake = torch.ones(2)
    with pytest.raises(InvariantError, match="'held'"):
        check_constants(graph_with(fake, inside))
