"""Broadcast: regions become step-conditioned branches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx

import helpers.captured as models
from helpers.captured import Captured, analysed, captured, small_dit
from helpers.golden import check_inline
from pab_compile.passes.graph.printer import diff_text, format_graph
from pab_compile.passes.rewrite.broadcast import StepBranch, branch_name, branches, broadcast
from pab_compile.passes.rewrite.verify import verify
from pab_compile.passes.sites.site import Site

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


def everything(site: Site) -> bool:
    return True


def rewritten(model: Captured, cut: str = "attention") -> tuple[fx.GraphModule, int]:
    return broadcast(model.graph_module, analysed(model, cut).sites, everything)


def change(function: Callable[..., torch.Tensor], cut: str = "attention") -> str:
    """What the rewrite changes in the printed graph."""
    model = captured(function)
    return diff_text(format_graph(model.graph_module), format_graph(rewritten(model, cut)[0]))


def test_a_region_becomes_one_call_whose_value_keeps_its_name() -> None:
    check_inline(
        change(models.cross_attention),
        """\
        @@
         %add = aten.add(%linear, %unsqueeze_1) : f32[2, 30, 4]
        -%linear_2 = aten.linear(%add, %w_q) : f32[2, 30, 4]
         %linear_3 = aten.linear(%prompt, %w_k) : f32[2, 7, 4]
         %linear_4 = aten.linear(%prompt, %w_v) : f32[2, 7, 4]
        -%attend = aten.scaled_dot_product_attention(%linear_2, %linear_3, %linear_4) : f32[2, 30, 4]
        -%linear_5 = aten.linear(%attend, %w_out) : f32[2, 30, 4]
        +%cross_0 = branch cross_0(%add, %w_q, %linear_3, %linear_4, %w_out) : (f32[2, 30, 4])  # reuse: load cache | otherwise:
        +    %linear_2 = aten.linear(%add, %w_q) : f32[2, 30, 4]
        +    %attend = aten.scaled_dot_product_attention(%linear_2, %linear_3, %linear_4) : f32[2, 30, 4]
        +    %linear_5 = aten.linear(%attend, %w_out) : f32[2, 30, 4]
        +    return %linear_5
        +%linear_5 = %cross_0[0] : f32[2, 30, 4]
         %add_1 = aten.add(%add, %linear_5) : f32[2, 30, 4]
        """,  # noqa: E501
    )


def test_the_gate_stays_outside_unless_the_cut_is_gated() -> None:
    check_inline(
        change(models.gated_attention),
        """\
        @@
         %unsqueeze_1 = aten.unsqueeze(%linear_1, 1) : f32[2, 1, 4]
        -%mul = aten.mul(%linear, %unsqueeze_1) : f32[2, 30, 4]
        -%linear_2 = aten.linear(%mul, %w_qkv) : f32[2, 30, 4]
         %silu = aten.silu(%unsqueeze_1) : f32[2, 1, 4]
        -%attend = aten.scaled_dot_product_attention(%linear_2, %linear_2, %linear_2) : f32[2, 30, 4]
        -%linear_3 = aten.linear(%attend, %w_out) : f32[2, 30, 4]
        +%full_0 = branch full_0(%linear, %unsqueeze_1, %w_qkv, %w_out) : (f32[2, 30, 4])  # reuse: load cache | otherwise:
        +    %mul = aten.mul(%linear, %unsqueeze_1) : f32[2, 30, 4]
        +    %linear_2 = aten.linear(%mul, %w_qkv) : f32[2, 30, 4]
        +    %attend = aten.scaled_dot_product_attention(%linear_2, %linear_2, %linear_2) : f32[2, 30, 4]
        +    %linear_3 = aten.linear(%attend, %w_out) : f32[2, 30, 4]
        +    return %linear_3
        +%linear_3 = %full_0[0] : f32[2, 30, 4]
         %mul_1 = aten.mul(%silu, %linear_3) : f32[2, 30, 4]
        """,  # noqa: E501
    )
    assert "+    %mul_1 = " in change(models.gated_attention, "gated")


def test_joint_attention_yields_both_streams() -> None:
    check_inline(
        change(models.joint_attention),
        """\
        @@
         %linear_2 = aten.linear(%prompt, %w_text) : f32[2, 7, 4]
        -%cat = aten.cat([%linear_2, %add], 1) : f32[2, 37, 4]
        -%attend = aten.scaled_dot_product_attention(%cat, %cat, %cat) : f32[2, 37, 4]
        -%split_with_sizes = aten.split_with_sizes(%attend, [7, 30], 1) : (f32[2, 7, 4], f32[2, 30, 4])
        -%getitem = %split_with_sizes[0] : f32[2, 7, 4]
        -%getitem_1 = %split_with_sizes[1] : f32[2, 30, 4]
        -%linear_3 = aten.linear(%getitem, %w_text_out) : f32[2, 7, 4]
        +%joint_0 = branch joint_0(%linear_2, %add, %w_text_out, %w_out) : (f32[2, 7, 4], f32[2, 30, 4])  # reuse: load cache | otherwise:
        +    %cat = aten.cat([%linear_2, %add], 1) : f32[2, 37, 4]
        +    %attend = aten.scaled_dot_product_attention(%cat, %cat, %cat) : f32[2, 37, 4]
        +    %split_with_sizes = aten.split_with_sizes(%attend, [7, 30], 1) : (f32[2, 7, 4], f32[2, 30, 4])
        +    %getitem = %split_with_sizes[0] : f32[2, 7, 4]
        +    %getitem_1 = %split_with_sizes[1] : f32[2, 30, 4]
        +    %linear_3 = aten.linear(%getitem, %w_text_out) : f32[2, 7, 4]
        +    %linear_4 = aten.linear(%getitem_1, %w_out) : f32[2, 30, 4]
        +    return %linear_3, %linear_4
        +%linear_3 = %joint_0[0] : f32[2, 7, 4]
        +%linear_4 = %joint_0[1] : f32[2, 30, 4]
         %add_1 = aten.add(%linear_2, %linear_3) : f32[2, 7, 4]
        -%linear_4 = aten.linear(%getitem_1, %w_out) : f32[2, 30, 4]
         %add_2 = aten.add(%add, %linear_4) : f32[2, 30, 4]
        """,  # noqa: E501
    )


@pytest.mark.parametrize("cut", ["attention", "gated"])
@pytest.mark.parametrize("model", EVERY_MODEL, ids=lambda f: f.__name__)
def test_the_rewritten_graph_is_sound_and_computes_the_same_bits(
    model: Callable[..., torch.Tensor], cut: str
) -> None:
    found = captured(model)
    before = found.graph_module
    after, count = rewritten(found, cut)
    assert count == len(branches(after)) >= 1
    verify(after, before)
    for mine, expected in zip(after(*found.args), found.eager(), strict=True):
        assert torch.equal(mine, expected)


def test_the_graph_that_is_rewritten_is_not_changed() -> None:
    model = captured(models.gated_attention)
    sites = analysed(model).sites
    before = format_graph(model.graph_module)
    broadcast(model.graph_module, sites, everything)
    assert format_graph(model.graph_module) == before


def test_rewriting_twice_changes_nothing_the_second_time() -> None:
    model = small_dit(1)
    sites = analysed(model).sites
    once, count = broadcast(model.graph_module, sites, everything)
    twice, again = broadcast(once, sites, everything)
    assert (count, again) == (3, 0)
    assert twice is once


def test_sites_that_are_not_wanted_stay_as_they_are() -> None:
    model = small_dit(1)
    sites = analysed(model).sites
    after, count = broadcast(model.graph_module, sites, lambda site: site.kind == "cross")
    assert count == 1
    assert [branch.site.kind for _, branch in branches(after)] == ["cross"]
    unchanged, none = broadcast(model.graph_module, sites, lambda site: False)
    assert none == 0
    assert unchanged is model.graph_module


def test_branches_know_their_sites_in_order() -> None:
    model = small_dit(2)
    sites = analysed(model).sites
    after, _ = broadcast(model.graph_module, sites, everything)
    found = branches(after)
    assert [branch.site for _, branch in found] == list(sites)
    assert all(isinstance(branch, StepBranch) for _, branch in found)
    for number, (node, branch) in enumerate(found):
        assert node.target == branch_name(number, branch.site)


def test_a_branch_name_is_an_identifier() -> None:
    (site,) = analysed(captured(models.cross_attention)).sites
    assert branch_name(3, site) == "cross_3"
    assert branch_name(3, site).isidentifier()


def test_everything_that_dies_on_reuse_is_inside_the_branch() -> None:
    model = captured(models.gated_attention)
    after, _ = rewritten(model)
    ((_, branch),) = branches(after)
    inside = [str(n.target) for n in branch.compute.graph.nodes if n.op == "call_function"]
    assert inside == [
        "aten.mul.Tensor",
        "aten.linear.default",
        "aten.scaled_dot_product_attention.default",
        "aten.linear.default",
    ]
