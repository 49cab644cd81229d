"""The pass as a whole: what re-shards for a site lies in its region, and is checked."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from helpers.captured import Captured, analysed, small_latte
from pab_compile.passes.errors import InvariantError
from pab_compile.passes.graph import ir
from pab_compile.passes.parallel.check import (
    check_exchanges,
    check_layout,
    check_regions,
    check_sharded,
    collectives,
)
from pab_compile.passes.parallel.choose import candidates
from pab_compile.passes.parallel.layout import lay_out
from pab_compile.passes.parallel.localise import Localised, localise
from pab_compile.passes.parallel.shard import Ranks
from pab_compile.passes.parallel.shard_tokens import ShardTokens
from pab_compile.passes.pipeline import rewriting
from pab_compile.passes.program import Program, run_passes
from pab_compile.passes.rewrite.broadcast import branches

RANKS = Ranks(3, 1, "ranks")


@pytest.fixture
def latte() -> Captured:
    return small_latte(batch=2)


def sharded(model: Captured, cut: str = "attention") -> Program:
    program = analysed(model, cut=cut)
    return run_passes(program, (ShardTokens(RANKS, lambda site: 0.5, "t"),))


@pytest.mark.parametrize("cut", ["attention", "gated"])
def test_a_temporal_branch_holds_both_exchanges_and_no_other_branch_any(
    latte: Captured, cut: str
) -> None:
    program = run_passes(sharded(latte, cut), rewriting(lambda site: True))
    per_kind = {
        branch.site.kind: len(collectives(list(branch.compute.graph.nodes)))
        for _, branch in branches(program.graph_module)
    }
    assert per_kind == {"spatial": 0, "temporal": 2, "cross": 0, "mlp": 0}


def test_a_site_caches_the_part_of_its_rank(latte: Captured) -> None:
    whole = {site.name: site for site in analysed(latte).sites}
    for site in sharded(latte).sites:
        assert site.cache_bytes * 4 == whole[site.name].cache_bytes  # one of four frames


def test_no_prelude_holds_a_collective(latte: Captured) -> None:
    program = run_passes(sharded(latte), rewriting(lambda site: True))
    for node in program.graph_module.graph.find_nodes(op="call_module"):
        module = program.graph_module.get_submodule(str(node.target))
        if str(node.target).startswith("prelude"):
            assert not collectives(list(module.compute.graph.nodes))


def localised(model: Captured, num_ranks: int, axis: str = "t") -> list[Localised]:
    """The graphs of all ranks."""
    program = analysed(model)
    axes = dict(candidates(program.inferred_axes))
    layout = lay_out(model.graph, program.inferred_axes, program.mixers, axes[axis], num_ranks)
    return [localise(model.graph_module, layout, Ranks(num_ranks, r)) for r in range(num_ranks)]


@pytest.mark.parametrize(("num_ranks", "axis"), [(2, "t"), (3, "t"), (3, "h")])
def test_a_rank_sends_what_the_other_expects(latte: Captured, num_ranks: int, axis: str) -> None:
    """Shards pair by pair on the graphs of all ranks, and as the check holds each alone."""
    ranks = localised(latte, num_ranks, axis)
    everyone = [collectives(list(local.graph_module.graph.nodes)) for local in ranks]
    for same in zip(*everyone, strict=True):
        assert len({node.target for node in same}) == 1
        if ir.is_call(same[0], "all_to_all_single"):
            for sender, receiver in itertools.product(range(num_ranks), repeat=2):
                assert same[sender].args[2][receiver] == same[receiver].args[1][sender]  # type: ignore[index]
    for rank, local in enumerate(ranks):
        check_exchanges(local.graph_module, local.purposes, Ranks(num_ranks, rank))


def test_sizes_that_only_another_rank_would_miss_are_found(latte: Captured) -> None:
    local = localised(latte, 3)[0]
    exchange = next(n for n in local.purposes if ir.is_call(n, "all_to_all_single"))
    operand, received, sent, group = exchange.args
    swapped = [sent[1] + 1, sent[0] - 1, *sent[2:]]  # type: ignore[index,operator,misc]
    exchange.args = (operand, received, swapped, group)
    with pytest.raises(InvariantError, match=r"rank 0 sends .* and the other ranks expect"):
        check_exchanges(local.graph_module, local.purposes, Ranks(3, 0))
    exchange.args = (operand, swapped, sent, group)
    with pytest.raises(InvariantError, match="rank 0 expects"):
        check_exchanges(local.graph_module, local.purposes, Ranks(3, 0))


def test_a_collective_that_no_change_of_layout_calls_for_is_found(latte: Captured) -> None:
    local = localised(latte, 2)[0]
    missing = dict(local.purposes)
    del missing[next(iter(missing))]
    with pytest.raises(InvariantError, match="no change of layout calls for"):
        check_exchanges(local.graph_module, missing, Ranks(2, 0))


def test_a_change_of_layout_without_a_collective_is_found(latte: Captured) -> None:
    program = analysed(latte)
    axes = dict(candidates(program.inferred_axes))
    layout = lay_out(latte.graph, program.inferred_axes, program.mixers, axes["t"], 2)
    check_layout(layout)
    (detour,) = layout.detours
    for lost in ({"entering": ()}, {"leaving": ()}):
        without = replace(layout, detours=(replace(detour, **lost),))  # type: ignore[arg-type]
        with pytest.raises(InvariantError, match="is not re-sharded"):
            check_layout(without)


def test_an_exchange_outside_its_region_is_found(latte: Captured) -> None:
    program = sharded(latte)
    (site,) = (site for site in program.sites if site.kind == "temporal")
    inside = {site.name: collectives(site.region)}
    assert len(inside[site.name]) == 2
    check_regions([site], inside)
    first = inside[site.name][0]
    outside = replace(site, region=tuple(n for n in site.region if n is not first))
    with pytest.raises(InvariantError, match="would run on reuse as well"):
        check_regions([outside], inside)


def test_sizes_that_do_not_fit_and_waits_that_are_missing_are_found(latte: Captured) -> None:
    program = sharded(latte)
    graph = program.graph_module.graph
    check_sharded(program.graph_module, latte.graph_module, RANKS)
    exchange = next(n for n in collectives(list(graph.nodes)) if ir.is_call(n, "all_to_all_single"))
    operand, received, sent, group = exchange.args
    exchange.args = (operand, received, [*sent[:-1], sent[-1] + 1], group)  # type: ignore[index,operator]
    with pytest.raises(InvariantError, match="exchanges"):
        check_sharded(program.graph_module, latte.graph_module, RANKS)
    exchange.args = (operand, received, sent, "others")
    with pytest.raises(InvariantError, match="for the group 'others'"):
        check_sharded(program.graph_module, latte.graph_module, RANKS)
    exchange.args = (operand, received, sent, group)
    (wait,) = exchange.users
    wait.replace_all_uses_with(exchange)
    with pytest.raises(InvariantError, match="waited for"):
        check_sharded(program.graph_module, latte.graph_module, RANKS)
