"""Verify: every invariant, broken once by hand, is named by an ``InvariantError``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx

import helpers.captured as models
from helpers.captured import Captured, analysed, captured
from pab_compile.passes.errors import InvariantError, PabError
from pab_compile.passes.graph import ir
from pab_compile.passes.rewrite.broadcast import StepBranch, broadcast
from pab_compile.passes.rewrite.pieces import cut_into_pieces
from pab_compile.passes.rewrite.verify import count_ops, verify
from pab_compile.passes.sites.binding import Binding

aten = torch.ops.aten


def rewritten() -> tuple[Captured, fx.GraphModule, fx.GraphModule]:
    """A captured model, and the same with branches and cut into pieces."""
    model = captured(models.cross_attention)
    branched, _ = broadcast(model.graph_module, analysed(model).sites, lambda site: True)
    return model, branched, cut_into_pieces(branched)


def branch_of(graph_module: fx.GraphModule) -> StepBranch:
    return next(m for m in graph_module.children() if isinstance(m, StepBranch))


def breaks(
    change: Callable[[fx.GraphModule], None], message: str, branched_only: bool = False
) -> None:
    """Check that a graph holds, and that it does not after the change."""
    model, branched, cut = rewritten()
    graph_module = branched if branched_only else cut
    verify(graph_module, model.graph_module)
    change(graph_module)
    with pytest.raises(InvariantError, match=message):
        verify(graph_module, model.graph_module)


def call_of(graph_module: fx.GraphModule, prefix: str) -> fx.Node:
    calls = graph_module.graph.find_nodes(op="call_module")
    return next(node for node in calls if str(node.target).startswith(prefix))


def test_it_is_an_error_of_this_library() -> None:
    assert issubclass(InvariantError, PabError)


def test_inputs_must_stay() -> None:
    def change(graph_module: fx.GraphModule) -> None:
        with graph_module.graph.inserting_before(ir.placeholders(graph_module.graph)[0]):
            graph_module.graph.placeholder("another")

    breaks(change, "the inputs changed")


def test_outputs_must_keep_their_layout() -> None:
    def change(graph_module: fx.GraphModule) -> None:
        latents = ir.placeholders(graph_module.graph)[1]
        ir.output_node(graph_module.graph).args = ((latents,),)

    breaks(change, "the outputs changed")


def test_only_branches_and_pieces_may_be_called() -> None:
    def change(graph_module: fx.GraphModule) -> None:
        graph_module.set_submodule(str(call_of(graph_module, "cross").target), torch.nn.ReLU())

    breaks(change, "a ReLU is not a branch or piece")


def test_only_single_tensors_pass_between_submodules() -> None:
    def change(graph_module: fx.GraphModule) -> None:
        cross, prelude = call_of(graph_module, "cross"), call_of(graph_module, "prelude")
        cross.replace_input_with(next(iter(prelude.users)), prelude)

    breaks(change, r"reads prelude\w+, which is not one tensor")


def test_a_submodule_must_return_a_tuple() -> None:
    def change(graph_module: fx.GraphModule) -> None:
        end = ir.output_node(branch_of(graph_module).compute.graph)
        end.args = (end.all_input_nodes[0],)

    breaks(change, "cross_0 does not return a tuple")


def test_a_submodule_must_return_something() -> None:
    def change(graph_module: fx.GraphModule) -> None:
        ir.output_node(branch_of(graph_module).compute.graph).args = ((),)

    breaks(change, "cross_0 returns nothing")


def test_a_submodule_must_not_call_another() -> None:
    def change(graph_module: fx.GraphModule) -> None:
        compute = branch_of(graph_module).compute
        compute.add_module("inner", torch.nn.ReLU())
        with compute.graph.inserting_before(ir.output_node(compute.graph)):
            compute.graph.call_module("inner", (ir.placeholders(compute.graph)[0],))

    breaks(change, "cross_0 calls another submodule, inner")


@pytest.mark.parametrize(
    "target",
    [
        aten.rand_like.default,
        aten.bernoulli.default,
        aten.dropout.default,
        aten.add_.Tensor,
        aten.copy_.default,
    ],
)
def test_a_branch_must_have_no_effect_but_its_value(target: torch._ops.OpOverload) -> None:
    def change(graph_module: fx.GraphModule) -> None:
        compute = branch_of(graph_module).compute
        x = ir.placeholders(compute.graph)[0]
        rest = {"add_": (x,), "copy_": (x,), "dropout": (0.5, True)}.get(ir_name(target), ())
        with compute.graph.inserting_before(ir.output_node(compute.graph)):
            compute.graph.call_function(target, (x, *rest))

    breaks(change, "has an effect besides its value")


def ir_name(target: torch._ops.OpOverload) -> str:
    return target._schema.name.removeprefix("aten::")


def test_a_prelude_must_read_nothing_that_changes() -> None:
    def change(graph_module: fx.GraphModule) -> None:
        prelude = call_of(graph_module, "prelude")
        ir.set_binding(prelude.all_input_nodes[0], Binding.STEP)

    breaks(change, "reads prompt, which changes at every step")


def test_no_op_may_be_lost() -> None:
    def change(graph_module: fx.GraphModule) -> None:
        compute = branch_of(graph_module).compute
        end = ir.output_node(compute.graph)
        (last,) = end.all_input_nodes
        end.args = ((last.all_input_nodes[0],),)
        compute.graph.erase_node(last)

    breaks(change, "ops were lost")


@pytest.mark.parametrize("inside", [True, False])
def test_no_op_may_be_doubled(inside: bool) -> None:
    def change(graph_module: fx.GraphModule) -> None:
        owner = branch_of(graph_module).compute if inside else graph_module
        x = ir.placeholders(owner.graph)[0]
        with owner.graph.inserting_after(x):
            owner.graph.call_function(aten.sin.default, (x,))

    breaks(change, "or doubled: {'sin': 1}", branched_only=not inside)


def test_the_graph_must_be_well_formed() -> None:
    def change(graph_module: fx.GraphModule) -> None:
        first = next(iter(graph_module.graph.nodes))
        call_of(graph_module, "cross").append(first)  # an input after its use

    breaks(change, "not well formed")


def test_ops_are_counted_through_submodules_and_picks_are_not() -> None:
    model, branched, cut = rewritten()
    counts = [count_ops(graph) for graph in (model.graph_module, branched, cut)]
    assert counts[0] == counts[1] == counts[2]
    assert counts[0].total() == len(list(ir.calls(model.graph)))
