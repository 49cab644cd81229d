"""Coalescing: what several sites would cache becomes one sum where the graph shows that it can."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, linear

import helpers.captured as models
from helpers.captured import (
    CHANNELS,
    TEXT,
    TOKENS,
    Captured,
    analysed,
    attend,
    captured,
    latents_of,
    small_dit,
    time_embedding,
    tokens_of,
    usual,
)
from helpers.golden import check_inline
from helpers.latte import assert_different, assert_same
from helpers.reusing import reused
from pab_compile.passes.errors import InvariantError
from pab_compile.passes.graph.printer import diff_text, format_graph
from pab_compile.passes.rewrite.broadcast import broadcast
from pab_compile.passes.rewrite.coalesce import Coalesced, coalesce, verify_coalesced
from pab_compile.passes.rewrite.pieces import cut_into_pieces
from pab_compile.passes.rewrite.verify import verify
from pab_compile.passes.sites.site import Site


def alike(site: Site) -> int:
    """The pattern of sites that are all reused together."""
    return 0


def coalesced(model: Captured, pattern: Callable[[Site], Any] = alike) -> Coalesced:
    sites = analysed(model, "gated").sites
    done = coalesce(model.graph_module, sites, pattern)
    verify_coalesced(done.graph_module, model.graph_module, done.sites, pattern)
    return done


def check_numbers(model: Captured, done: Coalesced) -> None:
    """Computing gives the model's output, reusing what the single sites give on reuse."""
    single = [site for site in analysed(model, "gated").sites if site.can_broadcast]
    assert torch.equal(done.graph_module(*model.args)[0], model.eager()[0])
    expected = reused(model, model.graph_module, single)
    assert_different(expected, model.eager()[0])
    merged = [site for site in done.sites if site.can_broadcast]
    assert_same(reused(model, done.graph_module, merged), expected)
    cut = cut_into_pieces(broadcast(done.graph_module, done.sites, lambda site: True)[0])
    verify(cut, done.graph_module)
    assert torch.equal(cut(*model.args)[0], model.eager()[0])


def parts_of(done: Coalesced) -> list[int]:
    return [len(site.parts) for site in done.sites if site.can_broadcast]


def test_two_sites_cache_their_sum() -> None:
    model = captured(models.mlp_block)
    done = coalesced(model)
    (site,) = [site for site in done.sites if site.parts]
    ((end, start),) = site.starts.items()
    assert (str(end), str(start.node), site.cut) == ("add_1", "linear", (end,))
    assert format_graph(done.graph_module) == format_graph(model.graph_module)
    assert parts_of(done) == [2]
    assert done.lines == (
        "coalesced 2 sites, full to mlp: they cache 1 tensor(s) of 960 bytes instead of 2 of 1920",
    )
    check_numbers(model, done)


@pytest.mark.sample("4")
@pytest.mark.parametrize("depth", [4, 12])
def test_what_is_cached_does_not_grow_with_depth(depth: int) -> None:
    model = small_dit(depth)
    done = coalesced(model)
    (site,) = [site for site in done.sites if site.can_broadcast]
    assert len(site.parts) == 3 * depth
    assert [site.cache_bytes] == [part.cache_bytes for part in site.parts[:1]]
    if depth == 4:
        check_numbers(model, done)


def joint_blocks(
    latents: torch.Tensor,
    timestep: torch.Tensor,
    prompt: torch.Tensor,
    w_in: torch.Tensor,
    w_time: torch.Tensor,
    w_text: torch.Tensor,
    w_out: torch.Tensor,
    w_text_out: torch.Tensor,
    w_up: torch.Tensor,
    w_down: torch.Tensor,
) -> torch.Tensor:
    """Two blocks of joint attention with an MLP on the video, then both streams are joined."""
    x, text = tokens_of(latents, w_in), linear(prompt, w_text)
    emb = time_embedding(timestep, w_time)
    for _ in range(2):
        both = layer_norm(torch.cat([text, x], 1), [CHANNELS]) * emb
        text_part, part = attend(both, both, both).split([TEXT, TOKENS], 1)
        text = text + emb * linear(text_part, w_text_out)
        x = x + emb * linear(part, w_out)
        x = x + emb * linear(gelu(linear(x * emb, w_up)), w_down)
    return latents_of(layer_norm(x + text.mean(1, keepdim=True), [CHANNELS]))


def test_two_streams_are_one_site_with_two_sums() -> None:
    model = captured(joint_blocks)
    done = coalesced(model)
    assert parts_of(done) == [4]
    (site,) = [site for site in done.sites if site.parts]
    assert [node.meta["val"].shape[1] for node in site.cut] == [TEXT, TOKENS]
    check_numbers(model, done)


def test_streams_that_are_joined_at_the_end_of_their_blocks_go_on_as_one() -> None:
    def model(latents, timestep, prompt, w_in, w_time, w_text, w_out, w_up, w_down):  # type: ignore[no-untyped-def]
        x, text = tokens_of(latents, w_in), linear(prompt, w_text)
        emb = time_embedding(timestep, w_time)
        both = layer_norm(torch.cat([text, x], 1), [CHANNELS]) * emb
        text_part, part = attend(both, both, both).split([TEXT, TOKENS], 1)
        tokens = torch.cat(
            [text + emb * linear(text_part, w_out), x + emb * linear(part, w_out)], 1
        )
        tokens = tokens + emb * linear(gelu(linear(tokens * emb, w_up)), w_down)
        return latents_of(tokens[:, TEXT:])

    done = coalesced(captured(model))
    assert parts_of(done) == [2]
    # Not the video's part alone: that would be a view of the whole.
    assert [site.cache_bytes for site in done.sites] == [4 * 2 * (TEXT + TOKENS) * CHANNELS]
    check_numbers(captured(model), done)


def two_streams(last_reads_the_end: bool) -> Captured:
    """Text that attends twice to the video, between its attention and its MLP, or behind both."""

    def model(latents, timestep, prompt, w_in, w_time, w_text, w_out, w_up, w_down):  # type: ignore[no-untyped-def]
        x, text = tokens_of(latents, w_in), linear(prompt, w_text)
        emb = time_embedding(timestep, w_time)
        x = x + emb * linear(attend(x, x, x), w_out)
        text = text + emb * attend(text, x, x)
        y = x + emb * linear(gelu(linear(x * emb, w_up)), w_down)
        x = y if last_reads_the_end else x
        text = text + emb * attend(text, x, x)
        return latents_of(layer_norm(y, [CHANNELS]) + torch.tanh(text).mean(1, keepdim=True))

    return captured(model)


@pytest.mark.parametrize("last_reads_the_end", [False, True])
def test_streams_of_which_one_only_reads_the_other_are_merged(last_reads_the_end: bool) -> None:
    model = two_streams(last_reads_the_end)
    done = coalesced(model)
    assert parts_of(done) == [4]
    (site,) = done.sites
    assert len(site.cut) == len(site.starts) == 2
    check_numbers(model, done)


def test_sums_of_as_many_bytes_as_their_sites_save_nothing_and_are_not_cached() -> None:
    def model(latents, timestep, w_in, w_time, w_out, w_up, w_down):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in)
        emb = time_embedding(timestep, w_time)
        attended = emb * linear(attend(x, x, x), w_out)
        inner = x + attended
        mixed = emb * linear(gelu(linear(inner * emb, w_up)), w_down)
        ways = inner + mixed, torch.tanh(x) + attended + mixed  # each would be a sum of two
        return latents_of(layer_norm(ways[0], [CHANNELS]) * torch.tanh(ways[1]))

    done = coalesced(captured(model))
    assert parts_of(done) == [0, 0]
    (line,) = done.lines
    assert line.endswith("not coalesced: 2 site(s), first full: sums would take as many bytes")


@pytest.mark.parametrize(
    "add",
    [
        pytest.param(lambda x, a: x + a.mean(1, keepdim=True), id="broadcast"),
        pytest.param(lambda x, a: a - x, id="the stream changes its sign"),
    ],
)
def test_what_is_no_plain_addition_keeps_sites_single(
    add: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    def model(latents, timestep, w_in, w_time, w_out, w_up, w_down):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in)
        emb = time_embedding(timestep, w_time)
        x = add(x, linear(attend(x, x, x), w_out) * emb)
        return latents_of(x + emb * linear(gelu(linear(x * emb, w_up)), w_down))

    assert parts_of(coalesced(captured(model))) == [0, 0]


def between(read: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Captured:
    """Attention and an MLP in a row; ``read(stream between them, gate)`` joins the output."""

    def model(latents, timestep, w_in, w_time, w_out, w_up, w_down):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in)
        emb = time_embedding(timestep, w_time)
        x = x + emb * linear(attend(x, x, x), w_out)
        y = x + emb * linear(gelu(linear(x * emb, w_up)), w_down)
        return latents_of(y * read(x, emb))

    return captured(model)


def test_what_reads_the_stream_in_between_keeps_sites_single() -> None:
    model = between(lambda x, emb: torch.tanh(x))
    done = coalesced(model)
    assert parts_of(done) == [0, 0]
    assert [line.rpartition(": ")[2] for line in done.lines] == [
        "tanh reads what it adds",
        "mul reads what it adds",
    ]
    assert done.graph_module is model.graph_module
    beside = between(lambda x, emb: emb)
    assert parts_of(coalesced(beside)) == [2]
    check_numbers(beside, coalesced(beside))


@pytest.mark.parametrize("of_the_step", [False, True])
def test_only_a_factor_of_the_step_ends_a_stretch(of_the_step: bool) -> None:
    def model(latents, timestep, w_in, w_time, w_out, w_up, w_down):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in)
        emb = time_embedding(timestep, w_time)
        x = (x + emb * linear(attend(x, x, x), w_out)) * (emb if of_the_step else 0.5)
        return latents_of(x + emb * linear(gelu(linear(x * emb, w_up)), w_down))

    found = captured(model)
    assert parts_of(coalesced(found)) == ([0, 0] if of_the_step else [2])
    check_numbers(found, coalesced(found))


def test_what_a_block_returns_may_be_the_start_of_the_next_stretch() -> None:
    def model(latents, timestep, prompt, w_in, w_time, w_out, w_text, w_up, w_down):  # type: ignore[no-untyped-def]
        x, text = tokens_of(latents, w_in), prompt
        emb, streams = time_embedding(timestep, w_time), []
        for _ in range(2):
            h = torch.cat([text, x], 1) * emb
            both = attend(h, h, h)
            x, text = x + linear(both[:, TEXT:], w_out), text + linear(both[:, :TEXT], w_text)
            x = x + linear(gelu(linear(x * emb, w_up)), w_down)
            text = text + linear(gelu(linear(text * emb, w_up)), w_down)
            streams.append(x.clone())
        return latents_of(x), streams[0]

    found = captured(model)
    check_numbers(found, coalesced(found))


def test_sites_of_other_patterns_stay_apart() -> None:
    model = small_dit(2)
    done = coalesced(model, lambda site: site.kind != "cross")
    # The cross-attention between is computed while the others reuse, so it reads the stream.
    kinds = [[part.kind for part in site.parts] for site in done.sites if site.parts]
    assert kinds == [["mlp", "spatial"]]
    alone = coalesced(model, lambda site: site.name)
    assert parts_of(alone) == [0] * 6
    never = coalesced(model, lambda site: None)
    assert (parts_of(never), never.lines) == ([0] * 6, ())


def test_before_the_gate_nothing_is_a_sum() -> None:
    model = captured(models.mlp_block)
    sites = analysed(model, "attention").sites
    done = coalesce(model.graph_module, sites, lambda site: 0)
    assert done.count == 0


def test_a_second_run_changes_nothing() -> None:
    once = coalesced(captured(models.mlp_block))
    again = coalesce(once.graph_module, once.sites, lambda site: 0)
    assert again.count == 0
    assert again.graph_module is once.graph_module


def test_verify_sees_a_value_that_a_reuse_would_lack() -> None:
    model = captured(models.mlp_block)
    done = coalesced(model)
    (site,) = [site for site in done.sites if site.parts]
    wrong = [replace(site, cut=site.parts[1].cut, starts={})]
    with pytest.raises(InvariantError, match="would not be without coalescing"):
        verify_coalesced(done.graph_module, model.graph_module, wrong, alike)
    lost = [replace(site, cut=(), region=())]
    with pytest.raises(InvariantError, match="has no region"):
        verify_coalesced(done.graph_module, model.graph_module, lost, alike)
    call = next(n for n in done.graph_module.graph.nodes if n.name == "gelu")
    call._rename("other")
    with pytest.raises(InvariantError, match="in one graph only"):
        verify_coalesced(done.graph_module, model.graph_module, done.sites, alike)


def read_between(
    latents: torch.Tensor,
    timestep: torch.Tensor,
    prompt: torch.Tensor,
    w_in: torch.Tensor,
    w_time: torch.Tensor,
    w_out: torch.Tensor,
    w_up: torch.Tensor,
    w_down: torch.Tensor,
) -> torch.Tensor:
    """Two blocks whose attentions are added up before the gate, each with an MLP behind it."""
    x = tokens_of(latents, w_in)
    gate = time_embedding(timestep, w_time)
    for _ in range(2):
        y = layer_norm(x, (CHANNELS,))
        both = linear(attend(y, y, y) + attend(y, prompt, prompt), w_out)
        x = x + gate * (both + attend(2 * y, y, y))
        x = x + gate * linear(gelu(linear(layer_norm(x, (CHANNELS,)), w_up)), w_down)
    return latents_of(x)


def test_what_other_sites_read_between_runs_only_if_one_of_them_computes() -> None:
    model = captured(read_between)
    done = coalesced(model)
    assert parts_of(done) == [3, 2, 2, 0]  # the last attention is added up with nothing else
    assert [line.rpartition(": ")[2] for line in done.lines] == [
        "they cache 2 tensor(s) of 1920 bytes instead of 3 of 2880",
        "they cache 1 tensor(s) of 960 bytes instead of 2 of 1920",
        "they cache 1 tensor(s) of 960 bytes instead of 2 of 1920",
        "mul reads what it adds",
    ]
    check_numbers(model, done)
    check_inline(
        diff_text(format_graph(model.graph_module), format_graph(done.graph_module)),
        """\
        @@
         %mul_4 = aten.mul(%unsqueeze_1, %add_5) : f32[2, 30, 4]
        +%add_6_start = aten.add(%add_2, %mul_4) : f32[2, 30, 4]
         %add_6 = aten.add(%add_3, %mul_4) : f32[2, 30, 4]
        """,
    )


def test_more_values_than_sites_stay_single_with_the_reason() -> None:
    def model(latents, timestep, prompt, w_in, w_time, w_text, w_out):  # type: ignore[no-untyped-def]
        x, text = tokens_of(latents, w_in), linear(prompt, w_text)
        emb = time_embedding(timestep, w_time)
        for _ in range(2):  # the text is added up; the video is not, and the next block reads it
            both = layer_norm(torch.cat([text, x], 1), [CHANNELS])
            text_part, part = attend(both, both, both).split([TEXT, TOKENS], 1)
            text = text + emb * linear(text_part, w_out)
            x = torch.tanh(x + emb * linear(part, w_out))
        return latents_of(layer_norm(x + text.mean(1, keepdim=True), [CHANNELS]))

    found = captured(model)
    done = coalesced(found)
    assert parts_of(done) == [0, 0]
    assert done.graph_module is found.graph_module
    (line,) = done.lines
    assert line.endswith("its sums need more sites than there are")


def joint_stream(
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
    """Two blocks over text and video, each of which hands on both as tensors of their own."""
    x, text = tokens_of(latents, w_in), linear(prompt, w_text)
    emb = time_embedding(timestep, w_time)
    both = torch.cat([text, x], 1)
    both = both + linear(attend(both, both, both), w_out)
    text, x = both[:, :TEXT], both[:, TEXT:]
    both = torch.cat([text, x], 1)
    both = both + linear(gelu(linear(both * emb, w_up)), w_down)
    return latents_of(both[:, TEXT:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_blocks_that_hand_on_the_parts_of_one_stream_cache_one_sum(dtype: torch.dtype) -> None:
    inputs = inspect.signature(joint_stream).parameters
    weights = {n: torch.nn.Parameter(usual(n).to(dtype), False) for n in inputs if n[:2] == "w_"}
    others = {name: usual(name).to(dtype) for name in inputs if name not in weights}
    model = captured(joint_stream, **others, **weights)
    done = coalesced(model)
    assert torch.equal(done.graph_module(*model.args)[0], model.eager()[0])
    assert parts_of(done) == [2]
    if dtype == torch.float32:
        check_numbers(model, done)
