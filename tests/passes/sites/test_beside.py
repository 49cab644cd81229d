"""Whole residual branches: an attention with what runs beside it, up to the residual add."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, linear

import helpers.captured as models
from helpers.captured import (
    CHANNELS,
    TEXT,
    Captured,
    analysed,
    attend,
    captured,
    latents_of,
    time_embedding,
    tokens_of,
)
from helpers.golden import check_golden
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.flops import count_flops
from pab_compile.passes.graph.printer import format_graph
from pab_compile.passes.rewrite.broadcast import broadcast
from pab_compile.passes.rewrite.verify import verify
from pab_compile.passes.sites.site import Site

Body = Callable[..., torch.Tensor]


def in_block(body: Body) -> Captured:
    """A model of ``x = body(x, h, emb, w, w_qkv, w_both)`` whose ``h`` is computed from ``x``."""

    def model(latents, timestep, w_in, w_time, w_up, w_qkv, w_both, w_last_out):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in)
        emb = time_embedding(timestep, w_time)
        x = body(x, layer_norm(x, [CHANNELS]) * emb, emb, w_up, w_qkv, w_both)
        return latents_of(linear(x, w_last_out))

    return captured(model)


def self_attention(h: Any, w: Any) -> Any:
    y = linear(h, w)
    return attend(y, y, y)


def fused(x: Any, h: Any, emb: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    """One projection makes queries and MLP, one takes the results of both."""
    parts = linear(h, torch.cat([w_qkv, w])).split([CHANNELS, CHANNELS], -1)
    attended = attend(parts[0], parts[0], parts[0])
    return x + emb * linear(torch.cat([attended, gelu(parts[1])], -1), w_both)


def added_pieces(x: Any, h: Any, emb: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    parts = linear(h, torch.cat([w_qkv, w])).split([CHANNELS, CHANNELS], -1)
    return x + emb * linear(attend(parts[0], parts[0], parts[0]) + gelu(parts[1]), w)


def parallel(x: Any, h: Any, emb: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    return x + emb * (linear(self_attention(h, w_qkv), w) + linear(gelu(linear(h, w)), w_qkv))


def multiplied(x: Any, h: Any, emb: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    return x + emb * linear(self_attention(h, w_qkv) * gelu(linear(h, w)), w)


def with_its_input(x: Any, h: Any, emb: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    return x + linear(torch.cat([self_attention(h, w_qkv), h], -1), w_both)


def post_norm(x: Any, h: Any, emb: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    return x + layer_norm(linear(self_attention(h, w_qkv), w), [CHANNELS])


def bottleneck(x: Any, h: Any, emb: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    """A value before the norm has fewer elements than what is added."""
    narrow = linear(self_attention(h, w_qkv), w[:2])
    return x + layer_norm(linear(narrow, w[:, :2]), [CHANNELS])


def sandwich(x: Any, h: Any, emb: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    both = torch.cat([self_attention(h, w_qkv), gelu(linear(h, w))], -1)
    return emb * layer_norm(linear(both, w_both), [CHANNELS]) + x


def scaled_stream(x: Any, h: Any, emb: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    return x * 0.7 + (self_attention(h, w_qkv) + linear(gelu(linear(h, w)), w))


def wide_addend(x: Any, h: Any, emb: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    narrow = torch.cat([self_attention(h, w_qkv), gelu(linear(h, w))], -1).half()
    return x + linear(narrow, w_both.half()).float()


WHOLE = [
    pytest.param(body, addend, id=body.__name__)
    for body, addend in (
        (fused, "mul"),
        (added_pieces, "mul"),
        (parallel, "mul"),
        (multiplied, "mul"),
        (with_its_input, "linear"),
        (post_norm, "layer_norm"),
        (bottleneck, "layer_norm"),
        (sandwich, "mul"),
        (scaled_stream, "add"),
        (wide_addend, "linear"),
    )
]


@pytest.mark.parametrize(("body", "addend"), WHOLE)
def test_all_that_is_added_is_one_site(body: Body, addend: str) -> None:
    model = in_block(body)
    (site,) = analysed(model, "branch").sites
    (cut,) = site.cut
    assert (site.kind, ir.op_name(cut)) == ("full", addend)
    outside = [node for node in ir.calls(model.graph) if node not in site.region]
    # The embedding of the tokens and the model's last projection; the timestep serves this block.
    assert sum(count_flops([node]) > 0 for node in outside) == 2
    branched, count = broadcast(model.graph_module, [site], lambda site: True)
    verify(branched, model.graph_module)
    assert count == 1
    assert torch.equal(branched(*model.args)[0], model.eager()[0])
    assert broadcast(branched, [site], lambda site: True)[1] == 0


@pytest.mark.parametrize("cut", ["attention", "gated"])
def test_other_cuts_hold_the_attention_alone(cut: str) -> None:
    for body in (fused, parallel, with_its_input):
        (site,) = analysed(in_block(body), cut).sites
        assert {ir.op_name(node) for node in site.cut} <= {"scaled_dot_product_attention", "linear"}
        assert not {"cat", "gelu"} & {ir.op_name(node) for node in site.region if node.users}
        assert site.branch == ""


def test_a_site_says_what_else_it_holds() -> None:
    (alone,), (whole,) = (analysed(in_block(fused), cut).sites for cut in ("gated", "branch"))
    more = whole.flops - alone.flops
    assert more > 0
    said = f"holds also: an MLP of {more:,} FLOPs, with the projections that both share"
    assert whole.branch == said
    assert analysed(in_block(post_norm), "branch").sites[0].branch == ""


def test_the_branch_of_a_single_stream_block() -> None:
    model = captured(models.parallel_block)
    sites = analysed(model, "branch").sites
    branched, _ = broadcast(model.graph_module, sites, lambda site: True)
    check_golden("single_stream_block", format_graph(branched))


def two_streams(after: Body, joins: Body, both_ways: bool = True) -> Captured:
    """Video and text: each adds what an attention of both gives, then comes a branch of both.

    Args:
        after: (x, text) -> what the model goes on with.
        joins: (joined, w, prompt) -> what runs beside the attention of the second branch.
        both_ways: whether the second branch is added to the text as well.
    """

    def model(latents, timestep, prompt, w_in, w_time, w_text, w_up, w_both):  # type: ignore[no-untyped-def]
        x, text = tokens_of(latents, w_in), linear(prompt, w_text)
        emb = time_embedding(timestep, w_time)
        both = attend(*[torch.cat([text, x], 1)] * 3)
        text, x = text + both[:, :TEXT], x + both[:, TEXT:]
        joined = torch.cat([text * emb, x * emb], 1)
        parts = [attend(joined, joined, joined), joins(joined, w_up, prompt)]
        both = linear(torch.cat(parts, -1), w_both)
        x, text = x + both[:, TEXT:] * emb, text + both[:, :TEXT] if both_ways else text
        return latents_of(after(x, text))

    return captured(model)


def mlp(joined: Any, w: Any, prompt: Any) -> Any:
    return gelu(linear(joined, w))


def second(model: Captured, cut: str = "branch") -> Site:
    first, *_, last = analysed(model, cut).sites
    assert first is not last
    return last


def test_a_branch_that_two_streams_share_has_an_end_in_each() -> None:
    site = second(two_streams(lambda x, text: x + text.mean(1, keepdim=True), mlp))
    assert [ir.op_name(node) for node in site.cut] == ["mul", "slice"]
    assert site.branch.startswith("holds also")


def test_a_branch_may_read_a_stream_that_ends_in_it() -> None:
    site = second(two_streams(lambda x, text: x, mlp, both_ways=False))
    assert [ir.op_name(node) for node in site.cut] == ["mul"]
    assert site.branch.startswith("holds also")


def not_whole(name: str, why: str, body: Body) -> Any:
    return pytest.param(lambda: in_block(body), why, id=name)


def later(x: Any, value: Any) -> Any:
    """The stream with a value of the branch read once more."""
    return x + value.mean(1, keepdim=True).sin()


def mlp_read_elsewhere(x: Any, h: Any, emb: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    beside = gelu(linear(h, w))
    return later(x + linear(torch.cat([self_attention(h, w_qkv), beside], -1), w_both), beside)


def attention_read_elsewhere(x: Any, h: Any, emb: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    attended = self_attention(h, w_qkv)
    return later(x + linear(torch.cat([attended, gelu(linear(h, w))], -1), w_both), attended)


def random(x: Any, h: Any, emb: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    beside = gelu(linear(h, w))
    beside = beside * torch.rand_like(beside)
    return x + linear(torch.cat([self_attention(h, w_qkv), beside], -1), w_both)


def never_added(x: Any, h: Any, emb: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    return linear(torch.cat([self_attention(h, w_qkv), gelu(linear(h, w))], -1), w_both)


def older_stream(x: Any, h: Any, emb: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    after = gelu(linear(x, w))
    h = layer_norm(after, [CHANNELS]) * emb
    return after + linear(torch.cat([self_attention(h, w_qkv), gelu(linear(x, w))], -1), w_both)


def product_of_tokens(x: Any, h: Any, emb: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    return x + torch.bmm(h, torch.bmm(self_attention(h, w_qkv).mT, linear(h, w)).sin())


REFUSED = [
    not_whole("value of the MLP read elsewhere", "reads a value of it", mlp_read_elsewhere),
    not_whole("attention read elsewhere", "reads a value of it", attention_read_elsewhere),
    not_whole("random numbers", "it holds rand_like", random),
    not_whole("no residual add", "reads a value of it, and does not add it", never_added),
    not_whole("an older stream", "a stream that the branch is not added to", older_stream),
    not_whole("a product of tokens", "a product that may mix tokens", product_of_tokens),
    pytest.param(
        lambda: two_streams(lambda x, text: x + text.mean(1, keepdim=True), mlp, both_ways=False),
        "a stream that the branch is not added to",
        id="a second stream that goes on",
    ),
    pytest.param(
        lambda: two_streams(
            lambda x, text: x + text.mean(1, keepdim=True),
            lambda joined, w, prompt: linear(joined.sin() * attend(joined, prompt, prompt), w),
            both_ways=False,
        ),
        "attentions of several kinds",
        id="an attention of another kind beside it, and a second stream that goes on",
    ),
]


@pytest.mark.parametrize(("make", "why"), REFUSED)
def test_what_is_no_whole_branch_is_cut_as_gated_and_says_why(
    make: Callable[[], Captured], why: str
) -> None:
    model = make()
    gated, branch = (
        [[node.name for node in site.cut] for site in analysed(model, cut).sites]
        for cut in ("gated", "branch")
    )
    assert branch == gated
    assert any(why in site.branch for site in analysed(model, "branch").sites)
