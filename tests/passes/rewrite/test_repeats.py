"""Repeats: a row of blocks is cut into few pieces, and into the same ones at any depth."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

import helpers.latte as latte
from helpers.captured import Captured, analysed, small_dit, small_latte
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.structure import calls_key, structure_key
from pab_compile.passes.rewrite.broadcast import StepBranch, branches, broadcast
from pab_compile.passes.rewrite.coalesce import coalesce
from pab_compile.passes.rewrite.pieces import cut_into_pieces
from pab_compile.passes.rewrite.repeats import cut_at_repeats, in_running_order
from pab_compile.passes.rewrite.verify import verify
from pab_compile.passes.sites.binding import Binding

SITES = {"s": "sin", "c": "cos", "t": "tanh", "m": "exp", "a": "abs"}


def row(word: str) -> tuple[list[fx.Node], list[list[fx.Node]]]:
    """A stream of two calls per letter: a site, and the addition behind it; ``+`` is one call."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    value = torch.empty(4)
    ir.set_value(x, value)
    sites = []
    for letter in word:
        if letter == "+":
            x = graph.call_function(torch.ops.aten.neg.default, (x,))
        else:
            op = getattr(torch.ops.aten, SITES[letter]).default
            site = graph.call_function(op, (x,))
            ir.set_value(site, value)
            sites.append([site])
            x = graph.call_function(torch.ops.aten.add.Tensor, (x, site))
        ir.set_value(x, value)
    graph.output((x,))
    return list(ir.calls(graph)), sites


def cut(word: str) -> str:
    """The pieces of a row in the letters that it was made of."""
    calls, sites = row(word)
    letter = {op: letter for letter, op in SITES.items()} | {"neg": "+", "add": ""}
    pieces = cut_at_repeats(calls, sites)
    assert [i for piece in pieces for i in piece] == list(range(len(calls)))
    return " ".join("".join(letter[ir.op_name(calls[i])] for i in piece) for piece in pieces)


@pytest.mark.parametrize(
    ("word", "pieces"),
    [
        pytest.param("scmscmscm", "scm scm scm", id="blocks"),
        pytest.param("smtmsmtmsmtm", "smtm smtm smtm", id="pairs of blocks"),
        pytest.param("cscmscmscm+", "c scm scm scm +", id="something before and after"),
        pytest.param("smsmsmamamam", "sm sm sm am am am", id="two sorts of blocks"),
        pytest.param("scm+tmscmtmscmtm", "scm + tm scm tm scm tm", id="a first block with more"),
        pytest.param("scmscmscmsc", "sc m sc m sc m sc", id="a last block with less"),
        pytest.param("scmscmtscmscm", "scm scm t scm scm", id="none covers half"),
        pytest.param("sscmsscmsscm", "sscm sscm sscm", id="a site twice in a block"),
        pytest.param("sctm", "sctm", id="nothing repeats"),
        pytest.param("smtm", "smtm", id="little repeats"),
        pytest.param("+", "+", id="no site"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_a_row_is_cut_where_it_repeats(word: str, pieces: str) -> None:
    assert cut(word) == pieces


def test_what_would_be_compiled_anew_in_every_block_is_cut_behind_its_sites() -> None:
    # No two neighbours are alike, so no block repeats.
    assert cut("scsmscstsasmsast").split() == list("scsmscstsasmsast")


def test_equal_calls_that_read_other_values_are_no_unit() -> None:
    graph = fx.Graph()
    x, y = (graph.placeholder(name) for name in "xy")
    calls = [graph.call_function(torch.ops.aten.add.Tensor, (a, b)) for a, b in ((x, x), (x, y))]
    graph.output(tuple(calls))
    assert calls_key(calls[:1], [0]) != calls_key(calls[1:], [0])
    assert calls_key(calls[1:], [0]) == calls_key(calls[1:], [0])


def test_the_values_of_an_op_stay_with_it_and_what_knows_no_latents_sinks() -> None:
    graph = fx.Graph()
    x, emb = (graph.placeholder(name) for name in ("x", "emb"))
    table = graph.call_function(torch.ops.aten.chunk.default, (emb, 2))
    first, second = (graph.call_function(operator.getitem, (table, i)) for i in (0, 1))
    y = graph.call_function(torch.ops.aten.relu.default, (x,))
    z = graph.call_function(torch.ops.aten.mul.Tensor, (y, first))
    graph.output((graph.call_function(torch.ops.aten.mul.Tensor, (z, second)),))
    for node in graph.nodes:
        ir.set_binding(node, Binding.STEP if node in (table, first, second) else Binding.LATENT)
    assert in_running_order(graph)[:5] == [y, table, first, second, z]


def merged(model: Captured) -> tuple[StepBranch, fx.GraphModule]:
    """The one branch of a model whose sites are all merged, in pieces, and the cut graph."""
    program = analysed(model, "gated")
    done = coalesce(model.graph_module, program.sites, lambda site: 0)
    cut_graph = cut_into_pieces(broadcast(done.graph_module, done.sites, lambda site: True)[0])
    verify(cut_graph, done.graph_module)
    ((_, branch),) = branches(cut_graph)
    return branch, cut_graph


def pieces_of(branch: StepBranch) -> list[fx.GraphModule]:
    return [piece.compute for _, piece in branch.compute.named_children()]  # type: ignore[misc]


def letters(branch: StepBranch) -> str:
    """The pieces of a branch in order, equal letters for equal ones."""
    keys = [structure_key(piece) for piece in pieces_of(branch)]
    known = list(dict.fromkeys(keys))
    return "".join(chr(ord("A") + known.index(key)) for key in keys)


# The captures of test_pieces, which are shared in one process.
DEEP = [pytest.mark.slow, pytest.mark.xdist_group("deep latte")]
LATTE = {4: "ABCBCBCB", 6: "ABCBCBCBCBCB"}
OWN = {depth: "A" + depth * "B" for depth in (2, 4, 12)}


@pytest.mark.sample("own")
@pytest.mark.parametrize(
    ("build_one", "expected"),
    [
        pytest.param(small_dit, OWN, id="own"),
        pytest.param(small_latte, LATTE, id="latte", marks=DEEP),
    ],
)
def test_pieces_are_whole_blocks_and_equal_ones_at_any_depth(
    build_one: Callable[[int], Captured], expected: dict[int, str]
) -> None:
    known: list[set[Any]] = []
    for depth, pieces in expected.items():
        model = build_one(depth)
        branch, cut_graph = merged(model)
        assert letters(branch) == pieces
        known.append({structure_key(piece) for piece in pieces_of(branch)})
        for mine, eager in zip(cut_graph(*model.args), model.eager(), strict=True):
            latte.assert_same(mine, eager)
    assert all(keys == known[0] for keys in known)
