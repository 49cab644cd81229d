"""Demand: what several branches need runs if one of them computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import gelu, layer_norm, linear

from helpers.captured import (
    BATCH,
    CHANNELS,
    TEXT,
    TOKENS,
    Captured,
    analysed,
    attend,
    captured,
    latents_of,
    ops,
    time_embedding,
    tokens_of,
)
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.ops import is_collective
from pab_compile.passes.rewrite.broadcast import broadcast
from pab_compile.passes.rewrite.coalesce import coalesce
from pab_compile.passes.rewrite.demand import sites_of_calls
from pab_compile.passes.rewrite.pieces import DEMANDED, Piece, cut_into_pieces
from pab_compile.passes.rewrite.verify import verify
from pab_compile.passes.sites.site import Site


def text_beside(
    latents: torch.Tensor,
    timestep: torch.Tensor,
    prompt: torch.Tensor,
    w_in: torch.Tensor,
    w_time: torch.Tensor,
    w_text: torch.Tensor,
    w_out: torch.Tensor,
    w_up: torch.Tensor,
    w_down: torch.Tensor,
) -> torch.Tensor:
    """Three joint attentions; the text between them has an MLP and is not returned."""
    x, text = tokens_of(latents, w_in), linear(prompt, w_text)
    emb = time_embedding(timestep, w_time)
    for _ in range(3):
        both = torch.cat([text, x], 1) * emb
        text_part, part = attend(both, both, both).split([TEXT, TOKENS], 1)
        text = text + linear(text_part, w_out)
        text = text + linear(gelu(linear(layer_norm(text, [CHANNELS]), w_up)), w_down)
        x = x + linear(part, w_out)
    return latents_of(layer_norm(x, [CHANNELS]))


def demanded(model: Captured, sites: tuple[Site, ...], wanted: Any) -> list[Piece]:
    """The pieces that run on demand, after checking the cut graph."""
    cut = cut_into_pieces(broadcast(model.graph_module, sites, wanted)[0])
    verify(cut, model.graph_module)
    assert torch.equal(cut(*model.args)[0], model.eager()[0])
    pieces = [cut.get_submodule(str(n.target)) for n in cut.graph.find_nodes(op="call_module")]
    return [piece for piece in pieces if isinstance(piece, Piece) and piece.sort == DEMANDED]


def test_a_stream_that_only_attentions_read_runs_on_demand() -> None:
    model = captured(text_beside)
    found = demanded(model, analysed(model).sites, lambda site: site.kind == "joint")
    # The third MLP is not read at all. What only one attention reads of the sums is in its region.
    mlp = ["add", "layer_norm", "linear", "gelu", "linear"]
    assert [ops(piece.compute) for piece in found] == [[*mlp, "add"], mlp]


def test_what_is_returned_or_small_runs_at_every_step() -> None:
    def model(latents, timestep, w_in, w_time, w_q, w_k, w_up, w_down):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in)
        emb = time_embedding(timestep, w_time)
        y = linear(layer_norm(x, [CHANNELS]), w_q)  # both attentions and the output read it
        z = layer_norm(x, [CHANNELS]) * emb  # only both attentions read it
        one, other = attend(y, z, z), attend(z, y, 2 * y)
        return latents_of(torch.tanh(one) * other + y)

    found = captured(model)
    assert demanded(found, analysed(found).sites, lambda site: True) == []


def modulated(latents, timestep, w_in, w_time, w_q):  # type: ignore[no-untyped-def]
    """Two attentions that are modulated by one projection of the embedded timestep."""
    x = tokens_of(latents, w_in)
    waves = torch.sin(timestep[..., None].expand(-1, -1, CHANNELS))
    emb = linear(linear(waves, w_time), w_q)
    for _ in range(2):
        y = layer_norm(x, [CHANNELS]) * emb
        x = x + attend(y, y, y)
    return latents_of(x)


def test_a_modulation_per_token_runs_on_demand_and_one_per_sample_at_every_step() -> None:
    for size, expected in ((TOKENS, 1), (1, 0)):
        timestep = torch.rand(BATCH, size)
        found = captured(modulated, timestep=timestep)
        pieces = demanded(found, analysed(found).sites, lambda site: True)
        assert [ops(piece.compute).count("linear") for piece in pieces] == [2] * expected


def gathered(latents, timestep, w_in, w_time, w_part):  # type: ignore[no-untyped-def]
    """Two attentions that are modulated by a projection whose weight is gathered from two ranks."""
    x = tokens_of(latents, w_in)
    ops = torch.ops._c10d_functional
    whole = ops.wait_tensor.default(ops.all_gather_into_tensor.default(w_part, 2, "ranks"))
    emb = linear(time_embedding(timestep, w_time), whole)
    for _ in range(2):
        y = layer_norm(x, [CHANNELS]) * emb
        x = x + attend(y, y, y)
    return latents_of(x)


def test_a_modulation_whose_weights_are_gathered_runs_on_demand() -> None:
    part = torch.nn.Parameter(torch.rand(CHANNELS // 2, CHANNELS), requires_grad=False)
    model = captured(gathered, w_part=part)
    sites = analysed(model).sites
    found = sites_of_calls(model.graph_module.graph, sites)
    (gather,) = (n for n in model.graph_module.graph.nodes if is_collective(n))
    assert found[gather] == {site.name for site in sites}


def shared(latents, timestep, w_in, w_time, w_q):  # type: ignore[no-untyped-def]
    """Two attentions that read one projection."""
    x = tokens_of(latents, w_in)
    emb = time_embedding(timestep, w_time)
    y = linear(layer_norm(x, [CHANNELS]), w_q)
    x = x + emb * attend(y, y, y)
    x = x + emb * attend(y, y, 2 * y)
    return latents_of(layer_norm(x, [CHANNELS]))


def test_a_shared_projection_is_a_piece_of_its_own() -> None:
    model = captured(shared)
    (piece,) = demanded(model, analysed(model).sites, lambda site: True)
    assert ops(piece.compute) == ["layer_norm", "linear"]
    first, second = (site.name for site in analysed(model).sites)
    found = sites_of_calls(model.graph, analysed(model).sites)
    product = next(node for node in ir.calls(model.graph) if found.get(node) == {first, second})
    assert ir.op_name(product) == "layer_norm"


def test_a_start_is_needed_wherever_its_end_is() -> None:
    model = captured(text_beside)
    sites = analysed(model, "gated").sites
    done = coalesce(model.graph_module, sites, lambda site: 0)
    (site,) = done.sites
    (start,) = site.starts.values()
    assert start.node not in sites_of_calls(done.graph_module.graph, done.sites)
    without = [replace(site, starts={})]
    assert start.node in sites_of_calls(done.graph_module.graph, without)
