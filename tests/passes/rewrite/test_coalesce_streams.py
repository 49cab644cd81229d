"""Coalescing of two streams, such as tokens and a prompt: apart, joined, and read by one."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, linear

from helpers.captured import (
    CHANNELS,
    TEXT,
    TOKENS,
    Captured,
    attend,
    captured,
    latents_of,
    time_embedding,
    tokens_of,
    usual,
)
from helpers.coalesced import check_numbers, coalesced, parts_of


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
