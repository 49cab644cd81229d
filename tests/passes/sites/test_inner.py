"""Sums inside of a residual branch: a norm after the sum, and attentions that read one another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, linear

from helpers.captured import (
    CHANNELS,
    Captured,
    analysed,
    attend,
    captured,
    latents_of,
    time_embedding,
    tokens_of,
)
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.flops import count_flops
from pab_compile.passes.rewrite.broadcast import broadcast
from pab_compile.passes.rewrite.verify import verify

Body = Callable[..., Any]


def in_block(body: Body) -> Captured:
    """A model of ``x = body(x, emb, prompt, w, w_qkv, w_both)`` with a usual block behind it."""

    def model(latents, timestep, prompt, w_in, w_time, w_up, w_qkv, w_both, w_last_out):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in)
        emb = time_embedding(timestep, w_time)
        x = body(x, emb, prompt, w_up, w_qkv, w_both)
        y = norm(x)
        x = x + emb * attend(y, y, y)
        return latents_of(linear(norm(x), w_last_out))

    return captured(model)


def norm(x: Any) -> Any:
    return layer_norm(x, [CHANNELS])


def self_attention(h: Any, w: Any) -> Any:
    y = linear(h, w)
    return attend(y, y, y)


def norm_after_sum(x: Any, emb: Any, prompt: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    y = norm(x + emb * self_attention(norm(x), w_qkv)) * emb
    return x + emb * linear(gelu(linear(y, w)), w_qkv)


def norm_after_a_cast_sum(x: Any, emb: Any, prompt: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    y = norm((x + emb * self_attention(norm(x), w_qkv)).double()).float() * emb
    return x + emb * linear(gelu(linear(y, w)), w_qkv)


def two_kinds(x: Any, emb: Any, prompt: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    h = norm(x) * emb
    return x + emb * linear(self_attention(h, w_qkv) + attend(h, prompt, prompt), w)


def one_reads_the_other(x: Any, emb: Any, prompt: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    h = norm(x) * emb
    a = self_attention(h, w_qkv)
    a = a + linear(attend(linear(a, w), prompt, prompt), w_qkv)
    return x + emb * linear(torch.cat([a, gelu(linear(h, w))], -1), w_both)


WHOLE = {
    norm_after_sum: (("full",), "holds also: an MLP"),
    norm_after_a_cast_sum: (("full",), "holds also: an MLP"),
    two_kinds: (("full", "cross"), "of several kinds: full, cross; it is reused where"),
    one_reads_the_other: (("full", "cross"), "of several kinds: full, cross; it is reused where"),
}


@pytest.mark.parametrize("body", WHOLE)
def test_a_branch_with_sums_of_its_own_is_one_site(body: Body) -> None:
    model = in_block(body)
    first, last = analysed(model, "branch").sites
    kinds, said = WHOLE[body]
    assert (first.kinds, last.kinds) == (kinds, ("full",))
    assert [ir.op_name(cut) for cut in first.cut] == ["mul"]
    assert said in first.branch
    sites = (first, last)
    outside = [node for node in ir.calls(model.graph) if all(node not in s.region for s in sites)]
    assert sum(count_flops([node]) > 0 for node in outside) == 3  # tokens, timestep, the last one
    branched, count = broadcast(model.graph_module, sites, lambda site: True)
    verify(branched, model.graph_module)
    assert count == 2
    assert torch.equal(branched(*model.args)[0], model.eager()[0])


@pytest.mark.parametrize("cut", ["attention", "gated"])
@pytest.mark.parametrize("body", WHOLE)
def test_other_cuts_hold_one_attention_each(cut: str, body: Body) -> None:
    sites = [site for site in analysed(in_block(body), cut).sites if site.kind != "mlp"]
    kinds = {norm_after_sum: ["full"], norm_after_a_cast_sum: ["full"]}.get(body, ["full", "cross"])
    assert [site.kind for site in sites] == [*kinds, "full"]
    assert not any(site.other_kinds or site.branch for site in sites)
    assert all(len(site.cut) == 1 for site in sites)


def usual(x: Any, emb: Any, prompt: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    """The sum is the stream that goes on."""
    x = x + emb * self_attention(norm(x), w_qkv)
    return x + emb * linear(gelu(linear(norm(x), w)), w_qkv)


def scaled(x: Any, emb: Any, prompt: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    """The sum is scaled, and an earlier value of the stream is added once more."""
    y = (x + emb * self_attention(norm(x), w_qkv)) / 2**0.5 + x
    return y + emb * linear(gelu(linear(norm(y), w)), w_qkv)


def normed(x: Any, emb: Any, prompt: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    """The norm of the sum is the stream, and an earlier value of it is added once more."""
    y = norm(x + emb * self_attention(x, w_qkv)) + x
    return y + emb * linear(gelu(linear(norm(y), w)), w_qkv)


def read_by_a_sum(x: Any, emb: Any, prompt: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    """A sum reads the sum, although all of it is added to the stream before."""
    y = x + emb * self_attention(norm(x), w_qkv)
    y = y + linear(prompt.mean(1, keepdim=True), w_qkv)
    return x + emb * linear(gelu(linear(norm(y), w)), w_qkv)


def read_by_a_sum_scaled(x: Any, emb: Any, prompt: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    """Likewise, and the sum is scaled before."""
    y = 0.5 * (x + emb * self_attention(norm(x), w_qkv))
    y = y + linear(prompt.mean(1, keepdim=True), w_qkv)
    return x + emb * linear(gelu(linear(norm(y), w)), w_qkv)


def all_normed(x: Any, emb: Any, prompt: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    """A block that norms both of its sums is added to the stream before it."""
    y = norm(x + emb * self_attention(x, w_qkv))
    return x + norm(y + emb * linear(gelu(linear(y, w)), w_qkv))


def around_a_block(x: Any, emb: Any, prompt: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    """A whole block with its stream is added to the stream before it."""
    return x + usual(x, emb, prompt, w, w_qkv, w_both)


def post_norm(x: Any, emb: Any, prompt: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    """The norm of the sum is the stream that goes on."""
    x = norm(x + emb * self_attention(x, w_qkv))
    return x + emb * linear(gelu(linear(x, w)), w_qkv)


def to_another_stream(x: Any, emb: Any, prompt: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    """What is computed from the sum is not added to its stream."""
    y = norm(x + emb * self_attention(norm(x), w_qkv))
    return gelu(x) + emb * linear(gelu(linear(y, w)), w_qkv)


def pooled_first(x: Any, emb: Any, prompt: Any, w: Any, w_qkv: Any, w_both: Any) -> Any:
    """The stream itself comes from an attention."""
    return usual(self_attention(x * emb, w_qkv), emb, prompt, w, w_qkv, w_both)


@pytest.mark.parametrize(
    "body",
    [
        usual,
        around_a_block,
        scaled,
        read_by_a_sum,
        read_by_a_sum_scaled,
        normed,
        all_normed,
        post_norm,
        to_another_stream,
    ],
)
def test_a_stream_that_goes_on_is_no_inner_sum(body: Body) -> None:
    model = in_block(body)
    first, *_ = analysed(model, "branch").sites
    (cut,) = first.cut
    assert ir.op_name(cut) == "mul"
    assert "gelu" not in {ir.op_name(node) for node in first.region}
    assert first.branch == ""


def test_a_join_that_fails_leaves_what_was_found_without_it() -> None:
    first, *others = analysed(in_block(pooled_first), "branch").sites
    assert "does not add it to a stream" in first.branch
    assert [site.kind for site in others] == ["full", "mlp", "full"]
    assert all(len(site.cut) == 1 and not site.branch for site in others)
