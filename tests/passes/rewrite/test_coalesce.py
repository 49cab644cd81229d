"""Coalescing: what several sites would cache becomes one sum where the graph shows that it can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

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
)
from helpers.coalesced import alike, check_numbers, coalesced, parts_of
from helpers.golden import check_inline
from pab_compile.passes.errors import InvariantError
from pab_compile.passes.graph.printer import diff_text, format_graph
from pab_compile.passes.rewrite.coalesce import coalesce, verify_coalesced


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
