"""Regions: what a mixer dominates, the cheapest tensors to cache, and what dies with them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import linear

import helpers.captured as models
from helpers.captured import (
    Captured,
    analysed,
    attend,
    captured,
    latents_of,
    time_embedding,
    tokens_of,
)
from pab_compile.passes.graph import ir
from pab_compile.passes.sites.growth import Growth
from pab_compile.passes.sites.regions import RegionFinder, cheapest_cut, dead_regions


def grow(function: Callable[..., torch.Tensor], cut: str = "attention") -> list[Growth]:
    """What the mixers of a model grow to."""
    return growths(captured(function), cut)


def growths(model: Captured, cut: str = "attention") -> list[Growth]:
    program = analysed(model, cut)
    seeds = [mixer.nodes for mixer in program.mixers]
    finder = RegionFinder(model.graph, seeds, [mixer.kind for mixer in program.mixers], cut)
    return list(finder.grow())


def names(nodes: tuple[torch.fx.Node, ...]) -> str:
    return " ".join(node.name for node in nodes)


# Nodes of the region, of its frontier, and of the cheapest cut.
GROWN = [
    pytest.param(
        *(models.gated_attention, "attention", "attend linear_3", "linear_3", "linear_3"),
        id="attention stops before the gate",
    ),
    pytest.param(
        *(models.gated_attention, "gated", "attend linear_3 mul_1", "mul_1", "mul_1"),
        id="gated stops before the residual add",
    ),
    pytest.param(
        *(models.parallel_block, "attention", "attend", "attend", "attend"),
        id="an MLP beside the attention keeps the cut before their concatenation",
    ),
    pytest.param(
        *(models.cross_attention, "attention", "attend linear_5", "linear_5", "linear_5"),
        id="cross-attention is cached after its projection",
    ),
    pytest.param(
        models.joint_attention,
        "attention",
        "attend split_with_sizes getitem getitem_1 linear_3 linear_4",
        "linear_3 linear_4",
        "linear_3 linear_4",
        id="joint attention has one frontier per stream",
    ),
    pytest.param(
        *(models.no_residual, "attention", "attend linear_1", "linear_1", "linear_1"),
        id="without a residual it ends at the timestep",
    ),
    pytest.param(
        models.no_residual,
        "gated",
        "attend linear_1 mul view_1 permute_1",
        "permute_1",
        "permute_1",
        id="without a residual the gated one ends at the output",
    ),
    pytest.param(
        *(models.widening, "attention", "attend linear_3", "linear_3", "attend"),
        id="the cheapest cut may lie before the frontier",
    ),
    pytest.param(
        *(models.two_prompts, "attention", "attend attend_1 add_1 linear_2"),
        *("linear_2", "linear_2"),
        id="two attentions that are added first are one region",
    ),
    pytest.param(
        *(models.batch_loop, "attention", "attend attend_1 cat linear_2", "linear_2", "linear_2"),
        id="a loop over the batch is one region",
    ),
]


@pytest.mark.parametrize(("function", "kind", "region", "frontier", "cheapest"), GROWN)
def test_a_region_ends_at_its_frontier_and_is_cached_at_its_cheapest_cut(
    function: Callable[..., torch.Tensor], kind: str, region: str, frontier: str, cheapest: str
) -> None:
    (growth,) = grow(function, kind)
    found = (names(growth.nodes), names(growth.frontier), names(cheapest_cut(growth)))
    assert found == (region, frontier, cheapest)
    assert growth.mixers == tuple(range(region.count("attend")))


def test_of_equal_cuts_the_latest_is_taken() -> None:
    (growth,) = grow(models.cross_attention)
    attention, projection = growth.nodes
    assert ir.num_bytes(attention) == ir.num_bytes(projection)
    assert cheapest_cut(growth) == (projection,)


def test_of_equal_cuts_before_a_wider_frontier_the_latest_is_taken() -> None:
    def model(latents, timestep, w_wide_in, w_time, w_narrow, w_wide, w_last):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_wide_in)
        y = linear(x, w_narrow) + models.time_embedding(timestep, w_time)
        mixed = models.attend(y, y, y).abs().sqrt()
        return latents_of(linear(x + linear(mixed, w_wide), w_last))

    (growth,) = grow(model)
    assert [ir.op_name(node) for node in cheapest_cut(growth)] == ["sqrt"]


def test_mixers_of_two_kinds_do_not_merge() -> None:
    def model(latents, timestep, prompt, w_in, w_time, w_out):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in) + time_embedding(timestep, w_time)
        return latents_of(x + linear(attend(x, x, x) + attend(x, prompt, prompt), w_out))

    found = grow(model)
    assert [growth.mixers for growth in found] == [(0,), (1,)]
    assert [names(growth.nodes) for growth in found] == ["attend", "attend_1"]


def test_one_attention_that_feeds_another_is_a_region_of_its_own() -> None:
    def model(latents, timestep, w_in, w_time):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in) + time_embedding(timestep, w_time)
        y = attend(x, x, x)
        return latents_of(x + attend(y, y, y))

    assert [names(growth.nodes) for growth in grow(model)] == ["attend", "attend_1"]


def dead(model: Captured, **cuts: str) -> dict[str, str]:
    """Names of what each cut makes dead, for cuts given as names of nodes."""
    analysed(model)
    nodes = {site: [model.node(name) for name in cut.split()] for site, cut in cuts.items()}
    return {site: names(region) for site, region in dead_regions(model.graph, nodes).items()}


def test_what_feeds_only_the_cut_is_dead_with_it() -> None:
    found = dead(captured(models.gated_attention), site="linear_3")
    assert found == {"site": "mul linear_2 attend linear_3"}


def test_what_feeds_two_cuts_is_in_neither_region() -> None:
    found = dead(captured(models.parallel_block), attention="attend", mlp="gelu")
    assert found == {"attention": "linear_2 attend", "mlp": "linear_3 gelu"}


def test_what_is_computed_once_per_prompt_stays_outside() -> None:
    model = captured(models.cross_attention)
    found = dead(model, site="linear_5")
    assert found == {"site": "linear_2 attend linear_5"}
    keys = model.node("attend").args[1]
    assert isinstance(keys, torch.fx.Node)
    assert keys.name not in found["site"]


def test_values_of_a_multi_output_op_stay_where_the_op_is() -> None:
    def model(latents, timestep, w_in, w_time, w_out):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in)
        scale, shift = time_embedding(timestep, w_time).expand(-1, 2, -1).chunk(2, 1)
        y = x * scale
        return latents_of(x + linear(attend(y, y, y), w_out) + shift)

    found = captured(model)
    (region,) = dead(found, site="linear_2").values()
    picks = [node for node in found.graph.nodes if ir.is_getitem(node)]
    assert len(picks) == 2
    assert not {node.name for node in picks} & set(region.split())


def test_a_cut_whose_outputs_feed_one_another_outside_has_no_region() -> None:
    def model(latents, timestep, w_in, w_time, w_a, w_b):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in) + time_embedding(timestep, w_time)
        first = linear(attend(x, x, x), w_a)
        shared = torch.sin(first)
        return latents_of(x + linear(shared, w_b) + shared)

    assert dead(captured(model), site="linear_2 linear_3") == {"site": ""}


@pytest.mark.parametrize("cut", ["attention", "gated"])
def test_regions_of_one_graph_are_disjoint(cut: str) -> None:
    sites = analysed(captured(models.mlp_block), cut).sites
    assert len(sites) == 2
    assert not set(sites[0].region) & set(sites[1].region)


def gated_by_itself(latents, timestep, w_in, w_qkv, w_gate, w_out):
    x = tokens_of(latents, w_in)
    y = x * torch.sin(timestep)[:, None, None]
    qkv = linear(y, w_qkv)
    own = torch.sigmoid(linear(y, w_gate))
    return latents_of(x + linear(attend(qkv, qkv, qkv) * own, w_out))


def test_a_gate_that_the_attention_computes_from_its_own_input_is_part_of_it() -> None:
    (growth,) = grow(gated_by_itself)
    assert names(growth.nodes) == "attend mul_1 linear_3"
    assert names(growth.frontier) == names(cheapest_cut(growth)) == "linear_3"


def test_what_is_cached_lies_after_such_a_gate_however_small_the_tensors_before_it() -> None:
    def model(latents, timestep, w_in, w_narrow, w_gate, w_wide):
        x = torch.cat([tokens_of(latents, w_in)] * 4, -1)
        y = linear(x * torch.sin(timestep)[:, None, None], w_narrow)
        own = torch.sigmoid(linear(y, w_gate))
        return latents_of((x + linear(attend(y, y, y) * own, w_wide))[..., :4])

    assert names(cheapest_cut(grow(model)[0])) == "mul_1"


def test_the_normaliser_of_linear_attention_is_part_of_it() -> None:
    def model(latents, timestep, w_in, w_qkv, w_out):
        x = tokens_of(latents, w_in)
        q = torch.relu(linear(x * torch.sin(timestep)[:, None, None], w_qkv))
        total = q @ q.sum(1)[:, :, None]
        return latents_of(x + linear((q @ (q.mT @ q)) / total, w_out))

    (growth,) = grow(model)
    assert names(cheapest_cut(growth)) == "linear_2"


def test_the_normaliser_belongs_to_it_where_the_keys_depend_on_the_step() -> None:
    def model(latents, timestep, prompt, w_in, w_qkv, w_time, w_gate, w_out):
        x = tokens_of(latents, w_in)
        q = torch.relu(linear(x, w_qkv))
        k = torch.relu(prompt * time_embedding(timestep, w_time))
        total = q @ k.sum(1)[:, :, None]
        gated = (q @ (k.mT @ prompt)) / total
        late = q @ time_embedding(timestep, w_gate).mT
        return latents_of(x + linear(gated, w_out) * late)

    (growth,) = grow(model)
    assert names(cheapest_cut(growth)) == "linear_4"


def test_a_factor_that_serves_something_else_too_stays_outside() -> None:
    def model(latents, timestep, w_in, w_qkv, w_gate, w_out):
        x = tokens_of(latents, w_in)
        qkv = linear(x * torch.sin(timestep)[:, None, None], w_qkv)
        shared = torch.sigmoid(linear(x, w_gate))
        return latents_of(x + linear(attend(qkv, qkv, qkv) * shared, w_out) + shared)

    assert names(cheapest_cut(grow(model)[0])) == "attend"


def test_a_factor_that_reads_the_timestep_itself_is_a_gate_and_stays_outside() -> None:
    def model(latents, timestep, w_in, w_qkv, w_gate, w_time, w_out):
        x = tokens_of(latents, w_in)
        qkv = linear(x, w_qkv)
        late = torch.sigmoid(linear(x, w_gate) * time_embedding(timestep, w_time))
        return latents_of(x + linear(attend(qkv, qkv, qkv) * late, w_out))

    assert names(cheapest_cut(grow(model)[0])) == "attend"
    assert names(cheapest_cut(grow(model, "gated")[0])) == "linear_4"


def test_the_attention_of_a_value_times_that_value_stays_outside() -> None:
    def model(latents, timestep, w_in, w_out):
        x = tokens_of(latents, w_in) * torch.sin(timestep)[:, None, None]
        return latents_of(x + linear(attend(x, x, x) * x, w_out))

    assert names(cheapest_cut(grow(model)[0])) == "attend"
