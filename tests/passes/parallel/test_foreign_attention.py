"""Attention ops of other libraries: shared over heads if the op itself keeps them apart."""

from __future__ import annotations

import re

import pytest
from torch import fx

from helpers.captured import Captured, analysed, captured_module, lines
from helpers.foreign_attention import HEADS, draw, inputs
from helpers.golden import check_golden
from helpers.latte import assert_same
from helpers.lockstep import run_ranks
from pab_compile.passes.graph import ir
from pab_compile.passes.parallel.check import check_exchanges, check_layout
from pab_compile.passes.parallel.choose import candidates
from pab_compile.passes.parallel.layout import Layout, lay_out
from pab_compile.passes.parallel.localise import Localised, localise
from pab_compile.passes.parallel.shard import Ranks

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def model(how: str, where: str = "", key_heads: int = HEADS) -> Captured:
    return captured_module(draw(how, where, key_heads), **inputs())


def laid_out(found: Captured, axis: str, num_ranks: int) -> Layout:
    program = analysed(found)
    shared = dict(candidates(program.inferred_axes))[axis]
    layout = lay_out(found.graph, program.inferred_axes, program.mixers, shared, num_ranks)
    check_layout(layout)
    return layout


def whole(layout: Layout) -> list[fx.Node]:
    """The attentions that every rank computes in full."""
    return [node for node in layout.in_full if "att" in ir.op_name(node)]


def parts_of(found: Captured, layout: Layout) -> list[Localised]:
    parts = []
    for rank in range(layout.num_ranks):
        ranks = Ranks(layout.num_ranks, rank)
        parts.append(localise(found.graph_module, layout, ranks))
        check_exchanges(parts[-1].graph_module, parts[-1].purposes, ranks)
    return parts


def check_ranks(found: Captured, layout: Layout) -> None:
    modules = [part.graph_module for part in parts_of(found, layout)]
    expected = found.eager()
    for outputs in run_ranks(modules, found.args):
        for got, whole in zip(outputs, expected, strict=True):
            assert_same(got, whole)


@pytest.mark.sample(
    "flash-joint-4-2", "flash--2-2", "groups of torch-joint-2-2", "flex, masked-joint-4-3"
)
@pytest.mark.parametrize(
    ("how", "where", "key_heads", "num_ranks"),
    [
        ("flash", "", HEADS, 3),
        ("flash", "joint", HEADS, 2),
        ("flash", "", 2, 2),
        ("sage", "joint", 2, 2),
        ("groups of torch", "joint", 2, 2),
        ("flex", "", HEADS, 2),
        ("flex, masked", "joint", HEADS, 3),
    ],
)
def test_an_op_that_keeps_heads_apart_is_shared_over_them(
    how: str, where: str, key_heads: int, num_ranks: int
) -> None:
    found = model(how, where, key_heads)
    layout = laid_out(found, "s", num_ranks)
    assert [detour.axis.name for detour in layout.detours] == ["heads"]
    assert not whole(layout)
    check_ranks(found, layout)


@pytest.mark.sample("sage")
@pytest.mark.parametrize("how", ["flash", "sage", "flex, masked"])
def test_attention_within_frames_is_shared_over_rows(how: str) -> None:
    found = model(how, "frame")
    layout = laid_out(found, "t", 2)
    assert not layout.detours and not whole(layout)
    check_ranks(found, layout)


REASONS = {
    "sloped by head": "results depend on all positions",
    "mixes heads": "results depend on all positions",
    "one scale": "results depend on all positions",
    "number of heads": "its argument 4 may be the number of positions",
    "list of slopes": "may list a number for each position",
    "tensor of slopes": "it also reads .*, and nothing says which part",
    "dropout": "results differ from run to run",
    "four heads only": "could not be tried on cpu .no kernel for so many heads",
    "flex, sloped by head": "its score function reads the number of the head",
    "flex, masked by head": "its mask function reads the number of the head",
}


@pytest.mark.sample("one scale", "number of heads", "tensor of slopes", "flex, masked by head")
@pytest.mark.parametrize("how", REASONS)
def test_any_other_op_is_computed_as_a_whole_and_explain_says_why(how: str) -> None:
    found = model(how)
    layout = laid_out(found, "s", 2)
    (op,) = whole(layout)
    assert not layout.detours
    assert re.search(REASONS[how], layout.reasons[op]), layout.reasons[op]
    if how != "dropout":
        check_ranks(found, layout)


def test_grouped_keys_with_fewer_heads_than_ranks_are_computed_as_a_whole() -> None:
    found = model("flash", key_heads=2)
    layout = laid_out(found, "s", 3)
    (op,) = whole(layout)
    assert "its keys have 2 heads only" in layout.reasons[op]
    check_ranks(found, layout)


def test_the_graph_of_a_rank_in_print() -> None:
    found = model("flash", key_heads=2)
    part = localise(found.graph_module, laid_out(found, "s", 2), Ranks(2, 1, "ranks"))
    nodes = [n for n in part.graph_module.graph.nodes if n.op == "call_function"]
    at = [i for i, n in enumerate(nodes) if "flash_attn" in n.name or "all_to_all" in n.name]
    for node in nodes:
        ir.forget_axis_names(node)
    check_golden("foreign_attention", lines(nodes[at[0] - 3 : at[-1] + 3]))
