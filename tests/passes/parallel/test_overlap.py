"""What travels, travels while the piece computes; the order of collectives stays."""

from __future__ import annotations

import pytest
import torch
from torch import fx
from torch.nn.functional import linear

from helpers.captured import (
    BATCH,
    CHANNELS,
    TOKENS,
    Captured,
    analysed,
    attend,
    captured,
    latents_of,
    time_embedding,
    tokens_of,
)
from helpers.golden import check_inline
from helpers.latte import assert_same
from helpers.lockstep import run_ranks
from pab_compile.passes.errors import InvariantError
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.ops import is_collective
from pab_compile.passes.graph.outline import outline
from pab_compile.passes.parallel import overlap as overlapping
from pab_compile.passes.parallel.choose import candidates
from pab_compile.passes.parallel.layout import lay_out
from pab_compile.passes.parallel.localise import localise
from pab_compile.passes.parallel.overlap import Overlap, in_flight, overlap
from pab_compile.passes.parallel.shard import Ranks
from pab_compile.passes.program import Program
from pab_compile.passes.rewrite.broadcast import StepBranch
from pab_compile.passes.rewrite.pieces import BLOCK, Piece


def full_attention(latents, timestep, w_in, w_time, w_q, w_k, w_v, w_out):  # type: ignore[no-untyped-def]
    """Two heads attend over all tokens of the video."""
    x = tokens_of(latents, w_in) + time_embedding(timestep, w_time)
    heads = (BATCH, TOKENS, 2, CHANNELS // 2)
    q, k, v = (linear(x, w).reshape(heads).transpose(1, 2) for w in (w_q, w_k, w_v))
    o = attend(q, k, v).transpose(1, 2).reshape(BATCH, TOKENS, CHANNELS)
    return latents_of(x + linear(o, w_out) * time_embedding(timestep, w_out))


def rank_graphs(model: Captured, num_ranks: int = 2) -> list[fx.GraphModule]:
    program = analysed(model)
    axis = dict(candidates(program.inferred_axes))["t"]
    layout = lay_out(model.graph, program.inferred_axes, program.mixers, axis, num_ranks)
    return [
        localise(model.graph_module, layout, Ranks(num_ranks, rank)).graph_module
        for rank in range(num_ranks)
    ]


def test_the_blocks_of_merged_sites_are_reordered_too() -> None:
    model = captured(full_attention)
    graph_module, _ = rank_graphs(model)
    groups = dict.fromkeys(ir.calls(graph_module.graph), "block_0")
    blocks = outline(graph_module, groups, lambda _, found: Piece(BLOCK, found.graph_module))
    graph = fx.Graph()
    inputs = [graph.placeholder(node.name) for node in ir.placeholders(blocks.graph)]
    graph.output((graph.call_module("branch", tuple(inputs)),))
    branch = StepBranch(analysed(model).sites[0], blocks)
    program = Program(fx.GraphModule({"branch": branch}, graph))
    assert Overlap()(program) == overlap(graph_module) > 0


def sketch(graph: fx.Graph) -> str:
    """Collectives, waits and what is computed, one per line."""
    kinds = ("linear", "scaled_dot_product_attention", "wait_tensor")
    nodes = [n for n in graph.nodes if is_collective(n) or ir.is_call(n, *kinds)]
    return "\n".join(node.name for node in nodes)


def test_keys_are_computed_while_queries_travel() -> None:
    (module, _) = rank_graphs(captured(full_attention))
    assert overlap(module) > 0
    check_inline(
        sketch(module.graph),
        """\
        linear
        linear_1
        linear_2
        transpose_all_to_all_single
        linear_3
        transpose_1_all_to_all_single
        linear_4
        transpose_2_all_to_all_single
        transpose_wait_tensor
        transpose_1_wait_tensor
        transpose_2_wait_tensor
        attend
        attend_all_to_all_single
        linear_6
        attend_wait_tensor
        linear_5
        permute_1_all_to_all_single
        permute_1_wait_tensor
        """,
    )


def test_ranks_compute_the_same_in_the_new_order() -> None:
    model = captured(full_attention)
    modules = rank_graphs(model)
    for module in modules:
        before = [node.name for node in module.graph.nodes if is_collective(node)]
        overlap(module)
        assert [node.name for node in module.graph.nodes if is_collective(node)] == before
    with torch.no_grad():
        for outputs in run_ranks(modules, model.args):
            assert_same(outputs[0], model.eager()[0])


def test_a_second_run_changes_nothing() -> None:
    (module, _) = rank_graphs(captured(full_attention))
    overlap(module)
    before = [node.name for node in module.graph.nodes]
    assert overlap(module) == 0
    assert [node.name for node in module.graph.nodes] == before


def test_a_graph_without_collectives_is_left_alone() -> None:
    module = captured(full_attention).graph_module
    before = list(module.graph.nodes)
    assert overlap(module) == 0 and not in_flight(module.graph)
    assert list(module.graph.nodes) == before


def test_collectives_in_another_order_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    (module, _) = rank_graphs(captured(full_attention))
    schedule = overlapping._schedule

    def swapped(graph: fx.Graph) -> list[fx.Node]:
        order = schedule(graph)
        sent = [n for n in order if is_collective(n)]
        waits = [next(iter(n.users)) for n in sent[:2]]
        first, second = order.index(sent[0]), order.index(sent[1])
        assert all(order.index(wait) > second for wait in waits)
        order.insert(second, order.pop(first))
        return order

    monkeypatch.setattr(overlapping, "_schedule", swapped)
    with pytest.raises(InvariantError, match="out of order"):
        overlap(module)


def test_an_exchange_that_could_start_first_waits_for_its_turn() -> None:
    """Its operand is ready at once; that of the one before it must be computed."""
    send, wait = (
        getattr(torch.ops._c10d_functional, n) for n in ("all_to_all_single", "wait_tensor")
    )

    def two_exchanges(latents, w_in):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in).flatten()
        half = [BATCH * TOKENS * CHANNELS // 2] * 2
        computed = linear(x.unflatten(0, (-1, CHANNELS)), w_in).exp().flatten()
        first = wait(send(computed, half, half, "ranks"))
        return first + wait(send(x, half, half, "ranks"))

    module = captured(two_exchanges).graph_module
    before = [node.name for node in module.graph.nodes if is_collective(node)]
    assert len(before) == 2
    overlap(module)
    assert [node.name for node in module.graph.nodes if is_collective(node)] == before
