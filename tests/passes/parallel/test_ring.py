"""Attention over all tokens by more ranks than it has heads: in rings, no rank has all keys."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from helpers.captured import (
    BATCH,
    CHANNELS,
    TEXT,
    TOKENS,
    Captured,
    analysed,
    captured,
    latents_of,
    lines,
    time_embedding,
    tokens_of,
)
from helpers.golden import check_golden
from helpers.latte import assert_same
from helpers.lockstep import run_ranks
from pab_compile.passes.graph import ir
from pab_compile.passes.parallel.check import check_exchanges
from pab_compile.passes.parallel.choose import candidates
from pab_compile.passes.parallel.layout import Layout, lay_out
from pab_compile.passes.parallel.localise import Localised, localise
from pab_compile.passes.parallel.shard import Ranks
from pab_compile.passes.parallel.shard_tokens import local_sites
from pab_compile.passes.parallel.traffic import sent_bytes

ALL = TEXT + TOKENS
BLOCKS = torch.arange(ALL)[:, None] // 12 == torch.arange(ALL) // 12  # many see no key of a place
MASKS = {
    "keys": (torch.arange(ALL) % 3 > 0).view(1, ALL),
    "rows and keys": BLOCKS.view(1, 1, ALL, ALL),
    "heads": torch.stack([BLOCKS, torch.arange(ALL).expand(ALL, ALL) > 20])[None],
    "biases": torch.linspace(-4, 4, ALL).view(1, 1, 1, ALL),
}


def attention(heads: int, how: str = "", mask: torch.Tensor | None = None) -> Captured:
    """Attention over all tokens, alone or with a prompt before them or behind them."""

    def attend(both, w_q, w_k, w_v, mask):  # type: ignore[no-untyped-def]
        q, k, v = (linear(both, w).unflatten(-1, (heads, -1)) for w in (w_q, w_k, w_v))
        if how == "values":  # they have fewer channels than keys
            v = torch.cat([v[..., :1], v[..., :1], v[..., 1:]], -1)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        y = scaled_dot_product_attention(q, k, v, mask, is_causal=how == "causal")
        return y.transpose(1, 2)[..., : CHANNELS // heads].flatten(2)

    def alone(latents, timestep, w_in, w_time, w_q, w_k, w_v, w_out):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in) + time_embedding(timestep, w_time)
        return latents_of(x + linear(attend(x, w_q, w_k, w_v, None), w_out))

    def joint(latents, timestep, prompt, w_in, w_time, w_text, w_q, w_k, w_v, w_out):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in) + time_embedding(timestep, w_time)
        text = linear(prompt, w_text)
        both = torch.cat([text, x] if how == "before" else [x, text], 1)
        y = linear(attend(both, w_q, w_k, w_v, mask), w_out)
        sizes = [TEXT, TOKENS] if how == "before" else [TOKENS, TEXT]
        parts = y.split(sizes, 1)
        video, rest = parts[how == "before"], parts[how != "before"]
        return latents_of(x + video + rest.mean(1, keepdim=True))

    return captured(joint if how in ("before", "behind") else alone)


def laid_out(model: Captured, axis: str, num_ranks: int, ring: int | None = None) -> Layout:
    program = analysed(model)
    shared = dict(candidates(program.inferred_axes))[axis]
    found = (program.inferred_axes, program.mixers)
    return lay_out(model.graph, *found, shared, num_ranks, ring=ring)


def parts_of(model: Captured, layout: Layout) -> list[Localised]:
    """The graph of every rank. What each of them sends is what the others expect."""
    found = []
    for rank in range(layout.num_ranks):
        ranks = Ranks(layout.num_ranks, rank)
        part = localise(model.graph_module, layout, ranks)
        check_exchanges(part.graph_module, part.purposes, ranks)
        found.append(part)
    return found


def check_ranks(model: Captured, layout: Layout, tolerance: float = 1e-5) -> None:
    """All ranks return what one device returns."""
    modules = [part.graph_module for part in parts_of(model, layout)]
    with torch.no_grad():
        for outputs in run_ranks(modules, model.args):
            for got, expected in zip(outputs, model.eager(), strict=True):
                assert got.dtype == expected.dtype
                assert_same(got.float(), expected.float(), tolerance)


@pytest.mark.sample(
    "2-s-4-heads, in rings of 2-before", "2-s-5-rings of 5-behind", "1-t-3-rings of 3-"
)
@pytest.mark.parametrize("how", ["", "before", "behind"])
@pytest.mark.parametrize(
    ("heads", "axis", "num_ranks", "name"),
    [
        (1, "t", 2, "rings of 2"),
        (1, "t", 3, "rings of 3"),
        (2, "s", 4, "heads, in rings of 2"),
        (2, "s", 5, "rings of 5"),
        (4, "s", 8, "heads, in rings of 2"),
    ],
)
def test_more_ranks_than_heads_compute_what_one_device_does(
    how: str, heads: int, axis: str, num_ranks: int, name: str
) -> None:
    model = attention(heads, how)
    layout = laid_out(model, axis, num_ranks)
    (detour,) = layout.detours
    assert detour.axis.name == name
    check_ranks(model, layout)


@pytest.mark.parametrize("ring", [2, 4])
def test_rings_of_a_given_length_are_made_although_there_are_heads(ring: int) -> None:
    model = attention(4, "before")
    assert laid_out(model, "s", 4).detours[0].axis.name == "heads"
    layout = laid_out(model, "s", 4, ring)
    found = layout.detours[0].ring
    assert found is not None and (found.num_heads, found.length) == (4 // ring, ring)
    check_ranks(model, layout)


def test_a_step_that_reuses_the_attention_exchanges_nothing() -> None:
    model = attention(2, "before")
    layout = laid_out(model, "s", 4)
    (detour,) = layout.detours
    for part in parts_of(model, layout):
        (site,) = (s for s in local_sites(analysed(model).sites, part) if s.kind == "joint")
        assert len(part.exchanges[detour]) == 6
        assert set(part.exchanges[detour]) <= set(site.region)


def test_no_rank_gets_all_keys() -> None:
    model = attention(2)
    layout = laid_out(model, "s", 4)
    for part in parts_of(model, layout):
        (detour,) = layout.detours
        for node in part.exchanges[detour]:
            assert (ir.shape(node) or (0,))[0] <= BATCH * CHANNELS * -(-TOKENS // 4)


@pytest.mark.sample("rows and keys", "heads")
@pytest.mark.parametrize("masked", MASKS)
def test_masks_hide_the_same_keys_wherever_they_are(masked: str) -> None:
    model = attention(2, "before", MASKS[masked])
    layout = laid_out(model, "s", 4)
    assert [detour.axis.name for detour in layout.detours] == ["heads, in rings of 2"]
    check_ranks(model, layout)


def test_in_bfloat16_parts_are_merged_in_float32() -> None:
    model = attention(2, "before")
    names = map(ir.source, ir.placeholders(model.graph))
    args = (x.bfloat16() for x in model.args)
    narrow = captured(model.function, **dict(zip(names, args, strict=True)))
    check_ranks(narrow, laid_out(narrow, "s", 4), 0.02)


@pytest.mark.sample("before-2-4", "-1-3")
@pytest.mark.parametrize(("heads", "num_ranks"), [(2, 4), (2, 5), (1, 3)])
@pytest.mark.parametrize("how", ["", "before"])
def test_bytes_are_those_that_a_rank_sends(how: str, heads: int, num_ranks: int) -> None:
    model = attention(heads, how)
    layout = laid_out(model, "s", num_ranks)
    (detour,) = layout.detours
    for rank, part in enumerate(parts_of(model, layout)):
        ranks = Ranks(num_ranks, rank)
        crossings = (*detour.entering, *detour.leaving)
        assert len(part.exchanges[detour]) == len(crossings)
        sent = 0
        for node in part.exchanges[detour]:
            sizes = list(node.args[2])  # type: ignore[arg-type]
            sent += 4 * (sum(sizes) - sizes[rank])
        assert sent == sum(sent_bytes(crossing, ranks) for crossing in crossings)


@pytest.mark.parametrize("how", ["causal", "values"])
def test_what_cannot_be_merged_runs_otherwise(how: str) -> None:
    model = attention(1, how)
    layout = laid_out(model, "t", 2)
    assert not any(detour.ring for detour in layout.detours)
    assert bool(layout.in_full) == (how == "causal")  # else every rank gets all keys
    check_ranks(model, layout)


def test_the_graph_of_a_rank_in_print() -> None:
    model = attention(2)
    layout = laid_out(model, "s", 4)
    part = localise(model.graph_module, layout, Ranks(4, 1, "ranks"))
    nodes = [n for n in part.graph_module.graph.nodes if n.op == "call_function"]
    last = max(i for i, n in enumerate(nodes) if n.name.startswith("attend"))
    first = min(i for i, n in enumerate(nodes) if n.name.startswith("attend"))
    for node in nodes:
        ir.forget_axis_names(node)
    check_golden("ring_attention", lines(nodes[first : last + 1]))
