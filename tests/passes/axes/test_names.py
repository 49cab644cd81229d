"""Names of axes that are put together: lone tokens, tokens that the model's own queries made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
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


# -- packed tokens -----------------------------------------------------------------------------

PACKED = (2, 72, 4)  # 3 frames of 4 * 6


def pooled_by_mean(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(1, (-1, 2)).mean(2)


def pooled_of_neighbours(x: torch.Tensor) -> torch.Tensor:
    left, right = x.unflatten(1, (-1, 2)).unbind(2)
    return left + right


def picked(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(1, (-1, 2)).select(2, 0)


def far_apart(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(1, (2, -1)).amax(1)


def pooled_in_squares(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(1, (3, 2, 2, 3, 2)).mean((3, 5)).flatten(1, 3)


def pooled_by_a_convolution(x: torch.Tensor) -> torch.Tensor:
    grid = x.view(6, 4, 6, 4).permute(0, 3, 1, 2)
    return F.conv2d(grid, torch.ones(4, 4, 2, 2), stride=2).flatten(2).mT.reshape(2, -1, 4)


POOLS = [
    pooled_by_mean,
    pooled_of_neighbours,
    picked,
    far_apart,
    pooled_in_squares,
    pooled_by_a_convolution,
]


@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: pool.__name__)
@pytest.mark.parametrize("by_hand", [False, True])
def test_keys_pooled_over_packed_tokens_run_along_the_same_axes(
    pool: Callable[..., Any], by_hand: bool
) -> None:
    def model(latents, w_in):
        x = F.linear(latents, w_in)
        y = pool(x)
        return (x @ y.mT).softmax(-1) @ y if by_hand else attend(x, y, y)

    assert kinds(model, latents=PACKED, w_in=(4, 4)).startswith("full: ")


@pytest.mark.parametrize("pool", POOLS[:3], ids=lambda pool: pool.__name__)
def test_frames_are_still_split_where_keys_are_pooled(pool: Callable[..., Any]) -> None:
    def model(latents, w_in):
        x = F.linear(latents, w_in)
        y = pool(x)
        x = x + attend(x, y, y)
        z = x.unflatten(1, (3, 24)).flatten(0, 1)
        y = pool(z)
        z = attend(z, y, y).unflatten(0, (2, 3))
        z = z.transpose(1, 2)
        return x, attend(z, z, z)

    found = kinds(model, latents=PACKED, w_in=(4, 4))
    assert found == "full: t*h*w < t*h*w; spatial: h*w < h*w; temporal: t < t"


def test_a_mean_over_the_places_of_a_frame_is_no_pooling_where_attention_runs_along_them() -> None:
    def model(latents, w_in):
        z = F.linear(latents, w_in).unflatten(1, (3, 24))
        z = z + z.mean(2, keepdim=True)
        y = z.transpose(1, 2)
        return attend(z, z, z), attend(y, y, y)

    assert kinds(model, latents=PACKED, w_in=(4, 4)) == "spatial: h*w < h*w; temporal: t < t"


def first_of_the_frames(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(1, (3, 24))[:, :1].expand(-1, 3, -1, -1)


def first_rows(x: torch.Tensor) -> torch.Tensor:
    return x[:, :24].unsqueeze(1).expand(-1, 3, -1, -1)


def first_and_former(x: torch.Tensor) -> torch.Tensor:
    z = x.unflatten(1, (3, 24))
    former = torch.cat([z[:, :1], z[:, :-1]], 1)
    return torch.cat([z[:, :1].expand(-1, 3, -1, -1), former], 2)


@pytest.mark.parametrize(
    "keys", [first_of_the_frames, first_rows, first_and_former], ids=lambda keys: keys.__name__
)
def test_keys_of_the_first_frame_leave_the_other_kinds_as_they_are(
    keys: Callable[..., Any],
) -> None:
    def model(latents, w_in):
        x = F.linear(latents, w_in)
        y = keys(x).flatten(0, 1)
        x = x + attend(x.unflatten(1, (3, 24)).flatten(0, 1), y, y).view(x.shape)
        z = x.unflatten(1, (3, 24)).transpose(1, 2)
        return attend(z, z, z), attend(x, x, x)

    found = kinds(model, latents=PACKED, w_in=(4, 4))
    assert found == "spatial: h*w < h*w; temporal: t < t; full: t*h*w < t*h*w"
