"""Names of axes that are put together: lone tokens, tokens that the model's own queries made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from helpers.graphs import traced
from pab_compile.passes.axes.infer import infer_axes
from pab_compile.passes.sites.classify import find_mixers

attend = F.scaled_dot_product_attention
SOUND = (2, 24, 4)


def kinds(function: Callable[..., Any], **inputs: Any) -> str:
    """``kind: query axes < key axes`` of every mixer."""
    graph_module = traced(function, **inputs)
    return "; ".join(
        f"{m.kind}: {'*'.join(m.query_axes) or '-'} < {'*'.join(m.key_axes) or '-'}"
        for m in find_mixers(graph_module, infer_axes(graph_module))
    )


def test_a_lone_token_of_a_condition_beside_many_names_no_axis() -> None:
    def model(latents, summary, w_in):
        x = torch.cat([F.linear(summary, w_in), F.linear(latents, w_in)], 1)
        return attend(x, x, x)[:, 1:]

    assert kinds(model, latents=SOUND, summary=(2, 1, 4), w_in=(4, 4)) == "full: s < s"
    found = kinds(model, latents=SOUND, summary=(2, 3, 4), w_in=(4, 4))
    assert found == "joint: summary*s < summary*s"


def test_a_lone_token_of_the_latents_counts() -> None:
    def model(latents, prompt, w_in):
        x = torch.cat([F.linear(prompt, w_in), F.linear(latents, w_in)], 1)
        return attend(x, x, x)[:, 7:]

    assert kinds(model, latents=(2, 1, 4), w_in=(4, 4)) == "joint: text*s < text*s"


def test_learned_queries_gather_tokens_that_are_neither_text_nor_video() -> None:
    def model(latents, prompt, w_in, w_queries):
        text, x = F.linear(prompt, w_in), F.linear(latents, w_in)
        gist = attend(w_queries.expand(2, -1, -1), text, text)
        gist = gist + attend(gist, gist, gist)
        joined = torch.cat([gist, x], 1)
        joined = joined + attend(joined, joined, joined)
        return (joined + attend(joined, text, text))[:, 5:]

    shapes = {"latents": SOUND, "w_in": (4, 4), "w_queries": (5, 4)}
    assert kinds(model, **shapes) == (
        "other: - < text; other: gathered < gathered; joint: gathered*s < gathered*s; "
        "cross: gathered*s < text"
    )


def test_the_channel_shows_where_others_are_put_beside_it() -> None:
    def model(latents, w_mix, w_in):
        x = F.conv1d(torch.cat([latents, torch.zeros_like(latents)], 1), w_mix)
        x = F.linear(x.transpose(1, 2), w_in)
        return attend(x, x, x).transpose(1, 2)

    assert kinds(model, latents=(2, 4, 24), w_mix=(6, 8, 1), w_in=(4, 6)) == "full: s < s"


def test_patches_of_packed_tokens_made_by_a_convolution_are_no_frames() -> None:
    def model(latents, w_in):
        x = F.conv1d(latents.transpose(1, 2), w_in, stride=2).transpose(1, 2)
        return attend(x, x, x)

    assert kinds(model, latents=SOUND, w_in=(6, 4, 2)) == "full: s < s"
