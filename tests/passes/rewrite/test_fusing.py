"""Fused sums in graphs with branches."""

from __future__ import annotations

import pytest
import torch

from helpers.captured import analysed, ops
from helpers.golden import check_inline
from helpers.residuals import FORMS, residual_model
from pab_compile.passes.errors import InvariantError
from pab_compile.passes.graph.outline import copy_graph
from pab_compile.passes.graph.printer import diff_text, format_graph
from pab_compile.passes.pipeline import rewriting
from pab_compile.passes.program import run_passes
from pab_compile.passes.rewrite.broadcast import branches, broadcast
from pab_compile.passes.rewrite.coalesce import coalesce
from pab_compile.passes.rewrite.fusing import fuse_sums, verify_fused
from pab_compile.passes.rewrite.pieces import cut_into_pieces
from pab_compile.passes.rewrite.verify import verify


def branched(cut: str) -> torch.fx.GraphModule:
    model = residual_model(FORMS["addcmul"])
    sites = analysed(model, cut).sites
    return broadcast(model.graph_module, sites, lambda site: True)[0]


def test_a_sum_whose_product_is_not_cached_is_fused() -> None:
    before = branched("attention")
    after, count = fuse_sums(before)
    verify_fused(after, before)
    assert count == 2
    diff = diff_text(format_graph(before), format_graph(after)).splitlines()
    check_inline(
        "\n".join(line for line in diff if line[0] in "+-"),
        """\
        -%addcmul_part = aten.mul(%linear_3, %unsqueeze_1) : f32[2, 30, 4]
        -%addcmul = aten.add(%linear, %addcmul_part) : f32[2, 30, 4]
        +%addcmul = aten.addcmul(%linear, %linear_3, %unsqueeze_1) : f32[2, 30, 4]
        -%addcmul_1_part = aten.mul(%linear_5, %unsqueeze_1) : f32[2, 30, 4]
        -%addcmul_1 = aten.add(%addcmul, %addcmul_1_part) : f32[2, 30, 4]
        +%addcmul_1 = aten.addcmul(%addcmul, %linear_5, %unsqueeze_1) : f32[2, 30, 4]
        """,
    )
    again, count = fuse_sums(after)
    assert (again, count) == (after, 0)


def test_a_sum_whose_product_is_cached_stays_apart() -> None:
    before = branched("gated")
    after, count = fuse_sums(before)
    assert (after, count) == (before, 0)


def test_a_sum_inside_a_branch_is_fused() -> None:
    model = residual_model(FORMS["addcmul"])
    done = coalesce(model.graph_module, analysed(model, "gated").sites, lambda site: 0)
    before, _ = broadcast(done.graph_module, done.sites, lambda site: True)
    after, count = fuse_sums(before)
    verify_fused(after, before)
    assert count == 2
    ((_, branch),) = branches(after)
    assert ops(branch.compute).count("addcmul") == 2
    assert branch.starts == branches(before)[0][1].starts != (None,)


@pytest.mark.parametrize("low", [False, True])
def test_computing_everything_gives_the_model_bit_for_bit(low: bool) -> None:
    for name in ("addcmul", "addcmul_", "lerp by a constant", "alpha"):
        model = residual_model(FORMS[name], low)
        sites = analysed(model, "attention").sites
        whole, _ = broadcast(model.graph_module, sites, lambda site: True)
        fused, count = fuse_sums(whole)
        assert count == 2
        cut = cut_into_pieces(fused)
        verify(cut, fused)
        assert torch.equal(cut(*model.args)[0], model.eager()[0]), name


def test_sums_are_fused_before_a_graph_is_cut_into_pieces() -> None:
    model = residual_model(FORMS["addcmul"])
    program = analysed(model, "attention")
    run_passes(program, rewriting(lambda site: False))
    assert program.num_apart == 0
    assert torch.equal(program.graph_module(*model.args)[0], model.eager()[0])


def test_verify_sees_another_sum() -> None:
    before = branched("attention")
    after, _ = fuse_sums(before)
    with pytest.raises(InvariantError, match="no sum was put together"):
        verify_fused(before, before)
    wrong = copy_graph(after)
    next(
        n for n in wrong.graph.nodes if n.name == "addcmul"
    ).target = torch.ops.aten.addcdiv.default
    with pytest.raises(InvariantError, match="ops were lost"):
        verify_fused(wrong, before)
