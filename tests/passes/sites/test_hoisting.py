"""Hoisting: what is the same at every step, and what has to stay where it is."""

from __future__ import annotations

import torch
from torch.nn.functional import linear

from helpers.captured import analysed, attend, captured, latents_of, time_embedding, tokens_of
from pab_compile.passes.graph import ir
from pab_compile.passes.sites.hoisting import hoisted_nodes


def packed_cross_attention(
    latents: torch.Tensor,
    timestep: torch.Tensor,
    prompt: torch.Tensor,
    w_in: torch.Tensor,
    w_time: torch.Tensor,
    w_both: torch.Tensor,
) -> torch.Tensor:
    """The weight is split between the latents and the prompt."""
    x = tokens_of(latents, w_in) * time_embedding(timestep, w_time)
    of_query, of_key = w_both.T.split([4, 4])
    key = linear(prompt, of_key)
    return latents_of(x + attend(linear(x, of_query), key, key))


def checked_prompt(
    latents: torch.Tensor,
    timestep: torch.Tensor,
    prompt: torch.Tensor,
    w_in: torch.Tensor,
    w_time: torch.Tensor,
    w_key: torch.Tensor,
) -> torch.Tensor:
    """An assertion about the prompt."""
    torch._assert_async(prompt.isfinite().all(), "the prompt is not finite")
    x = tokens_of(latents, w_in) * time_embedding(timestep, w_time)
    key = linear(prompt, w_key)
    return latents_of(x + attend(x, key, key))


def test_the_parts_of_a_packed_weight_go_together() -> None:
    model = captured(packed_cross_attention)
    analysed(model)
    hoisted = hoisted_nodes(model.graph)
    (split,) = (n for n in model.graph.nodes if ir.is_call(n, "split_with_sizes", "split"))
    assert split in hoisted
    assert hoisted.issuperset(split.users)


def test_an_assertion_stays_while_what_it_looks_at_is_hoisted() -> None:
    model = captured(checked_prompt)
    analysed(model)
    hoisted = hoisted_nodes(model.graph)
    (check,) = (n for n in model.graph.nodes if ir.is_call(n, "_assert_async"))
    assert ir.has_effect(check)
    assert check not in hoisted
    assert hoisted.issuperset(check.all_input_nodes)
