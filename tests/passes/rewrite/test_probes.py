"""Probes: samples of what every branch would cache become outputs of the graph."""

from __future__ import annotations

import pytest
import torch
from torch import fx

import helpers.captured as models
from helpers.captured import analysed, captured
from helpers.golden import check_inline
from pab_compile.passes.errors import InvariantError
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.printer import diff_text, format_graph
from pab_compile.passes.rewrite.broadcast import broadcast
from pab_compile.passes.rewrite.pieces import cut_into_pieces
from pab_compile.passes.rewrite.probes import _draw, insert_probes, verify_probes
from pab_compile.passes.rewrite.verify import verify

CPU = torch.device("cpu")


def branched(model: models.Captured) -> fx.GraphModule:
    return broadcast(model.graph_module, analysed(model, "attention").sites, lambda site: True)[0]


def test_every_branch_and_the_outputs_give_their_samples_as_one_more_output() -> None:
    before = branched(captured(models.joint_attention))
    after, count = insert_probes(before, 100)
    assert count == 2
    check_inline(
        diff_text(format_graph(before), format_graph(after)),
        """\
        @@
         %w_text_out = weight w_text_out : f32[4, 4]
        +%probed_0 = attribute probed_0 : i64[18]
        +%probed_1 = attribute probed_1 : i64[81]
        +%probed_2 = attribute probed_2 : i64[100]
         %permute = aten.permute(%latents, [0, 2, 3, 4, 1]) : f32[2, 3, 2, 5, 4]
        @@
         %permute_1 = aten.permute(%view_1, [0, 4, 1, 2, 3]) : f32[2, 4, 3, 2, 5]
        -return %permute_1
        +%take_default = aten.take(%linear_3, %probed_0) : f32[18]
        +%take_default_1 = aten.take(%linear_4, %probed_1) : f32[81]
        +%cat_default = aten.cat([%take_default, %take_default_1]) : f32[99]
        +%take_default_2 = aten.take(%permute_1, %probed_2) : f32[100]
        +return %permute_1, %cat_default, %take_default_2
        """,
    )


@pytest.mark.parametrize("num_samples", [50, 10_000])
def test_outputs_stay_and_samples_are_elements_of_the_cut(num_samples: int) -> None:
    model = captured(models.joint_attention)
    before = branched(model)
    after, _ = insert_probes(before, num_samples)
    verify_probes(after, before)
    pieces = cut_into_pieces(after)
    verify(pieces, after)
    plain = before(*model.args)
    for probed in (after(*model.args), pieces(*model.args)):
        assert all(torch.equal(a, b) for a, b in zip(plain, probed, strict=False))
        samples, of_output = probed[len(plain) :]
        assert samples.dtype == of_output.dtype == torch.float32
        assert max(len(samples), len(of_output)) <= num_samples
        assert set(of_output.tolist()) <= set(plain[0].flatten().tolist())


def test_a_second_run_changes_nothing() -> None:
    once, _ = insert_probes(branched(captured(models.gated_attention)), 8)
    again, count = insert_probes(once, 8)
    assert (again, count) == (once, 0)


def test_a_graph_without_branches_gets_no_probe() -> None:
    graph_module = captured(models.gated_attention).graph_module
    after, count = insert_probes(graph_module, 8)
    assert count == 0
    assert format_graph(after) == format_graph(graph_module)


def test_verify_sees_an_output_that_moved_and_an_op_that_changed() -> None:
    before = branched(captured(models.gated_attention))
    after, _ = insert_probes(before, 8)
    output = ir.output_node(after.graph)
    right = output.args
    output.args = (tuple(reversed(right[0])),)  # type: ignore[arg-type]
    with pytest.raises(InvariantError, match="output read"):
        verify_probes(after, before)
    output.args = right
    node = next(n for n in after.graph.nodes if ir.is_call(n, "silu"))
    node.target = torch.ops.aten.relu.default
    with pytest.raises(InvariantError, match="silu is not what it was"):
        verify_probes(after, before)


@pytest.mark.parametrize(("size", "count"), [(10, 10), (11, 10), (1000, 7), (100_000, 4096)])
def test_elements_are_drawn_without_replacement_and_always_the_same(size: int, count: int) -> None:
    drawn = _draw(size, count, CPU)
    assert len(drawn) == len(set(drawn.tolist())) == count
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < size
    assert torch.equal(drawn, _draw(size, count, CPU))


def test_the_mean_over_the_drawn_elements_is_that_over_all_within_its_spread() -> None:
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(3)).square()
    estimate = values[_draw(len(values), 4096, CPU)].mean()
    assert abs(float(estimate / values.mean()) - 1) < 4 * (2 / 4096) ** 0.5
