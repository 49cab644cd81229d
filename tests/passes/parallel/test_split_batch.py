"""Rows of the batch on different ranks: the rewrite, what it proves, and what stays checked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import linear

from helpers.captured import (
    BATCH,
    CHANNELS,
    FRAMES,
    SPACE,
    Captured,
    analysed,
    attend,
    captured,
    latents_of,
    lines,
    time_embedding,
    tokens_of,
)
from helpers.golden import check_golden
from helpers.latte import assert_same
from helpers.lockstep import run_ranks
from pab_compile.passes.axes.atoms import size
from pab_compile.passes.errors import InvariantError, ShardingError
from pab_compile.passes.graph import ir
from pab_compile.passes.parallel import split_batch
from pab_compile.passes.parallel.check import check_sharded, collectives
from pab_compile.passes.parallel.placement import Axis
from pab_compile.passes.parallel.shard import Ranks
from pab_compile.passes.parallel.shard_tokens import ShardTokens, refuse_own_exchanges
from pab_compile.passes.parallel.split_batch import SplitBatch, first_part
from pab_compile.passes.program import run_passes

Between = Callable[[torch.Tensor], torch.Tensor]


def blocks(before: Between | None = None, between: Between | None = None) -> Captured:
    """Spatial attention, then temporal attention; something else before either of them."""

    def model(latents, timestep, w_in, w_time, w_q, w_out):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in) + time_embedding(timestep, w_time)
        x = x if before is None else before(x)
        x = x.reshape(BATCH * FRAMES, SPACE, CHANNELS)
        x = x + linear(attend(x, x, x), w_out)
        x = x.reshape(BATCH, FRAMES, SPACE, CHANNELS)
        x = x if between is None else between(x)
        y = x.transpose(1, 2).reshape(BATCH * SPACE, FRAMES, CHANNELS)
        y = linear(attend(y, linear(y, w_q), y), w_out)
        return latents_of(x + y.reshape(BATCH, SPACE, FRAMES, CHANNELS).transpose(1, 2))

    return captured(model)


def check_rows(model: Captured) -> None:
    """Both ranks return what one device returns."""
    programs = [run_passes(analysed(model), (SplitBatch(Ranks(2, r)),)) for r in range(2)]
    with torch.no_grad():
        for outputs in run_ranks([p.graph_module for p in programs], model.args):
            for got, expected in zip(outputs, model.eager(), strict=True):
                assert_same(got, expected)


def test_the_graph_of_one_row_in_print() -> None:
    model = blocks()
    check_rows(model)
    program = run_passes(analysed(model), (SplitBatch(Ranks(2, 0, "rows")),))
    nodes = [n for n in program.graph_module.graph.nodes if n.op == "call_function"]
    for node in nodes:
        ir.forget_axis_names(node)
    check_golden("batch_on_two_ranks", lines(nodes))


def test_a_rank_computes_and_caches_its_rows_and_exchanges_only_its_output() -> None:
    program = analysed(blocks())
    whole = {site.name: site.cache_bytes for site in program.sites}
    run_passes(program, (SplitBatch(Ranks(2, 1)),))
    assert {site.name: 2 * site.cache_bytes for site in program.sites} == whole
    (gather,) = collectives(list(program.graph_module.graph.nodes))
    assert ir.is_call(gather, "all_gather_into_tensor")
    regions = {node for site in program.sites for node in site.region}
    assert regions and gather not in regions


def test_the_axes_of_a_row_are_those_of_the_batch_with_its_size() -> None:
    program = run_passes(analysed(blocks()), (SplitBatch(Ranks(2, 0)),))
    for mixer in program.mixers:
        dims = program.inferred_axes.dims(mixer.nodes[-1])
        assert tuple(size(dim) for dim in dims) == ir.shape(mixer.nodes[-1])
        assert "b" in program.inferred_axes.roles(mixer.nodes[-1], 0)


@pytest.mark.parametrize("place", ["before", "between"])
def test_an_op_that_mixes_rows_is_named(place: str) -> None:
    def mixes(x: torch.Tensor) -> torch.Tensor:
        return x + torch.flip(x, [0])

    if place == "before":  # the rows are sharded behind it
        check_rows(blocks(before=mixes))
        return
    with pytest.raises(ShardingError, match=r"aten.flip.*since it mixes.*Leave batch_mesh"):
        run_passes(analysed(blocks(between=mixes)), (SplitBatch(Ranks(2)),))


def test_rows_are_gathered_for_an_op_that_mixes_them_behind_the_last_attention() -> None:
    def model(latents, timestep, w_in, w_time, w_out):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in) + time_embedding(timestep, w_time)
        x = x + linear(attend(x, x, x), w_out)
        return latents_of(x + 2 * (x - torch.flip(x, [0])))

    check_rows(captured(model))


def test_fewer_rows_than_ranks_are_refused() -> None:
    with pytest.raises(ShardingError, match=r"2 row\(s\).*3 ranks.*Let 2 of them share it"):
        run_passes(analysed(blocks()), (SplitBatch(Ranks(3)),))


def test_three_ranks_cannot_share_the_one_row_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_batch, "rows_of", lambda _: Axis("b", 1, lambda _: True))
    with pytest.raises(ShardingError, match=r"1 row\(s\).*3 ranks.*two calls.*Or leave batch_mesh"):
        run_passes(analysed(blocks()), (SplitBatch(Ranks(3)),))


def test_tokens_are_shared_behind_it_and_its_exchange_stays() -> None:
    program = first_part(analysed(blocks()), 2)
    before = program.graph_module
    run_passes(program, (ShardTokens(Ranks(3, 0, "tokens"), lambda site: 1.0, "t"),))
    graph = program.graph_module.graph
    found = [node.args[-1] for node in collectives(list(graph.nodes))]
    assert sorted(set(found)) == ["b", "tokens"] and found.count("b") == 1
    gather = next(n for n in collectives(list(graph.nodes)) if n.args[-1] == "b")
    gather.args = (*gather.args[:-1], "others")
    with pytest.raises(InvariantError, match="for the group 'others'"):
        check_sharded(program.graph_module, before, Ranks(3, 0, "tokens"))
    gather.args = (*gather.args[:-1], "tokens")
    with pytest.raises(InvariantError, match="lost a collective of other ranks"):
        check_sharded(program.graph_module, before, Ranks(3, 0, "tokens"))


def test_a_model_that_exchanges_by_itself_is_not_shared_once_more() -> None:
    program = first_part(analysed(blocks()), 2)
    with pytest.raises(ShardingError, match="exchanges tensors between ranks itself: _c10d"):
        refuse_own_exchanges(program.graph_module.graph)
