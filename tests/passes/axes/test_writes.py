"""Sequences that are written into a longer tensor: padding, and buffers that keep keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from helpers.axes_of import named
from helpers.graphs import traced
from pab_compile.passes.axes.infer import infer_axes
from pab_compile.passes.graph import ir
from pab_compile.passes.sites.classify import find_mixers

TEXT = (1, 7, 4)
LENGTH = 48
aten = torch.ops.aten


def kinds(function: Callable[..., Any], **inputs: Any) -> str:
    """``kind: query axes < key axes`` of every mixer; buffers called ``w_cache`` are written to."""
    inputs = {"latents": (1, 4, 4, 6), "prompt": TEXT, "w_in": (4, 4)} | inputs
    graph_module = traced(function, **inputs)
    for node in ir.placeholders(graph_module.graph):
        ir.set_volatile(node, ir.source(node) == "w_cache")
    return "; ".join(
        f"{m.kind}: {'*'.join(m.query_axes) or '-'} < {'*'.join(m.key_axes) or '-'}"
        for m in find_mixers(graph_module, infer_axes(graph_module))
    )


def both(latents: torch.Tensor, prompt: torch.Tensor, w_in: torch.Tensor) -> torch.Tensor:
    """``[b, text+h*w, c]``."""
    return torch.cat([F.linear(prompt, w_in), picture(latents, w_in)], 1)


def picture(latents: torch.Tensor, w_in: torch.Tensor) -> torch.Tensor:
    """``[b, h*w, c]``."""
    return F.linear(latents.flatten(2).mT, w_in)


def padded(x: torch.Tensor) -> torch.Tensor:
    return F.pad(x, (0, 0, 0, LENGTH - x.shape[1]))


def listed(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([x[0], torch.zeros(LENGTH, 4)], batch_first=True)


def listed_in_front(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([x[0], torch.zeros(LENGTH, 4)]).transpose(0, 1)


def scattered(x: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(x.shape[1])[None, :, None].expand(x.shape)
    return torch.zeros(1, LENGTH, 4).scatter(1, rows, x)


def added(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(1, LENGTH, 4).index_add(1, torch.arange(x.shape[1]), x)


def put(x: torch.Tensor) -> torch.Tensor:
    return aten.index_put(torch.zeros(1, LENGTH, 4), [None, torch.arange(x.shape[1])], x[0])


def put_by_a_mask(x: torch.Tensor) -> torch.Tensor:
    mask = (torch.arange(LENGTH) < x.shape[1])[None]
    return torch.zeros(1, LENGTH, 4).index_put((mask,), x[0])


def a_row_at_a_time(x: torch.Tensor) -> torch.Tensor:
    zeros = torch.zeros(1, LENGTH, 4)
    row = aten.slice_scatter(zeros.select(0, 0), x[0], 0, 0, x.shape[1])
    return aten.select_scatter(zeros, row, 0, 0)


WRITES = [padded, listed, listed_in_front, scattered, added, put, put_by_a_mask, a_row_at_a_time]


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_a_padded_sequence_keeps_the_axes_of_all_its_parts(write: Callable[..., Any]) -> None:
    def model(latents, prompt, w_in):
        x = write(both(latents, prompt, w_in))
        return F.scaled_dot_product_attention(x, x, x)

    assert kinds(model) == "joint: text*h*w < text*h*w"


def test_rows_that_return_to_their_own_axis_leave_it_as_it_is() -> None:
    def model(latents):
        rows = torch.arange(3)[None, :, None].expand(2, 3, 4)
        return latents.scatter(1, rows, latents[:, :3])[:, 3:]

    assert named(model, latents=(2, 12, 4)) == "b, s, c"


def test_a_scatter_of_one_value_changes_no_axis() -> None:
    def model(latents):
        return latents.scatter(1, torch.zeros(2, 1, 4, dtype=torch.long), 0.0)

    assert named(model, latents=(2, 12, 4)) == "b, s, c"


def sliced(cache: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return aten.slice_scatter(cache, x, 1, 7, 31)


def copied(cache: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return cache.index_copy(1, torch.arange(7, 31), x)


def put_in(cache: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return aten.index_put(cache, [None, torch.arange(7, 31)], x[0])


@pytest.mark.parametrize("write", [sliced, copied, put_in], ids=lambda write: write.__name__)
def test_keys_that_a_buffer_keeps_from_an_earlier_call_are_joint(
    write: Callable[..., Any],
) -> None:
    def model(latents, prompt, w_in, w_cache):
        x = picture(latents, w_in)
        keys = write(w_cache, x)
        return F.scaled_dot_product_attention(x, keys, keys) + prompt.mean()

    assert kinds(model, w_cache=(1, 31, 4)) == "joint: h*w < cached*h*w"


def test_what_is_all_written_anew_is_not_from_an_earlier_call() -> None:
    def model(latents, prompt, w_in, w_cache):
        text = aten.slice_scatter(w_cache, F.linear(prompt, w_in), 1, 0, 7)
        x = picture(latents, w_in)
        keys = aten.slice_scatter(text, x, 1, 7, 31)
        return F.scaled_dot_product_attention(x, keys, keys)

    assert kinds(model, w_cache=(1, 31, 4)) == "joint: h*w < text*h*w"


def test_a_table_that_nothing_writes_to_is_no_cache() -> None:
    def model(latents, prompt, w_in, w_table):
        x = picture(latents, w_in) + prompt.mean()
        keys = aten.slice_scatter(w_table, x, 1, 7, 31)
        return F.scaled_dot_product_attention(x, keys, keys)

    assert kinds(model, w_table=(1, 31, 4)) == "spatial: h*w < h*w"


def test_keys_of_a_prompt_are_cross_although_it_stands_beside_the_picture_too() -> None:
    def model(latents, prompt, w_in):
        x, y = both(latents, prompt, w_in), F.linear(prompt, w_in)
        return F.scaled_dot_product_attention(x, y, y)

    assert kinds(model) == "cross: text*h*w < text"
