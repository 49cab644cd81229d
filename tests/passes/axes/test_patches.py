"""Patches that are cut without weights: ``F.unfold``, ``pixel_unshuffle``, and their inverses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from helpers.axes_of import inferred, named
from helpers.graphs import traced
from pab_compile.passes.axes.infer import infer_axes
from pab_compile.passes.graph import ir
from pab_compile.passes.sites.classify import find_mixers

IMAGE = (2, 4, 8, 12)


def frames(latents: torch.Tensor) -> torch.Tensor:
    """``[b*t, c, h, w]``."""
    return latents.transpose(1, 2).flatten(0, 1)


def test_patches_side_by_side_are_a_grid_and_their_inside_is_channels() -> None:
    def model(latents, w_in):
        patches = F.unfold(frames(latents), 2, stride=2).transpose(1, 2)
        return F.linear(patches, w_in).unflatten(1, (4, 6))

    assert named(model, w_in=(6, 16)) == "b*t, h, w, c"


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 2, "dilation": 2, "padding": 1},
        {"kernel_size": 2, "stride": 2, "padding": 2},
        {"kernel_size": (8, 2), "stride": (8, 2)},
    ],
    ids=str,
)
def test_other_windows_show_the_axes_of_the_grid(options: dict[str, Any]) -> None:
    def model(latents, w_in):
        return F.linear(F.unfold(latents, **options).transpose(1, 2), w_in)

    num = F.unfold(torch.zeros(IMAGE), **options).shape[1]
    assert named(model, latents=IMAGE, w_in=(6, num)) == "b, h*w, c"


def test_an_image_without_a_batch_is_unfolded_too() -> None:
    def model(latents):
        return F.unfold(latents[0, :, 0], 2, stride=2)

    assert named(model).endswith(", h*w")


def test_fold_is_the_inverse() -> None:
    def model(latents):
        x = F.unfold(latents, 2, stride=2)
        y = F.unfold(latents, 3, padding=1)
        return F.fold(x, (8, 12), 2, stride=2), F.fold(y, (8, 12), 3, padding=1)

    options = {"latents": "b c h w"}
    table, found = inferred(model, options, latents=IMAGE)
    assert found == ["b, c, h*2, w*2", "b, c, h, w"]
    assert table.notes == ()


def test_the_inside_of_a_patch_shows_the_channel() -> None:
    """Both the latents and the prompt could be the one that the output is like."""

    def unfolded(latents, prompt, w_in, w_out):
        x = F.linear(F.unfold(latents, 2, stride=2).transpose(1, 2), w_in)
        x = x + F.scaled_dot_product_attention(x, x, x)
        x = x + F.scaled_dot_product_attention(x, prompt, prompt)
        return F.fold(F.linear(x, w_out).transpose(1, 2), (8, 12), 2, stride=2)

    def unshuffled(latents, prompt, w_in, w_out):
        x = F.linear(F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2), w_in)
        x = x + F.scaled_dot_product_attention(x, x, x)
        x = x + F.scaled_dot_product_attention(x, prompt, prompt)
        x = F.linear(x, w_out).transpose(1, 2).unflatten(2, (4, 6))
        return F.pixel_shuffle(x, 2)

    for model in (unfolded, unshuffled):
        graph_module = traced(model, latents=IMAGE, prompt=(2, 7, 8), w_in=(8, 16), w_out=(16, 8))
        table = infer_axes(graph_module)
        assert (ir.source(table.latents), table.notes) == ("latents", ())
        assert [m.kind for m in find_mixers(graph_module, table)] == ["spatial", "cross"]
