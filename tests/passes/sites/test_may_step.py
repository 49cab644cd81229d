"""Which inputs may turn out to change at every step: none that can be a prompt."""

from __future__ import annotations

import torch
from torch.nn.functional import linear

from helpers.captured import (
    BATCH,
    CHANNELS,
    FRAMES,
    HEIGHT,
    WIDTH,
    analysed,
    attend,
    captured,
    latents_of,
    tokens_of,
    values,
)

TOKENS = FRAMES * HEIGHT * WIDTH


def model(latents, timestep, prompt, image, residual, strength, mask, ids, w_in, w_q, w_k, w_out):
    x = tokens_of(latents, w_in) + torch.sin(timestep)[:, None, None] + ids.float().mean()
    x = x + attend(linear(x, w_q), linear(prompt, w_k), prompt) * strength[:, None, None]
    x = x + attend(linear(x, w_q), linear(image, w_k), image) * mask[:, None, None]
    return latents_of(linear(x + residual, w_out))


def named(**stated: str) -> set[str]:
    inputs = {
        "residual": values(BATCH, TOKENS, CHANNELS),
        "strength": values(BATCH),
        "mask": values(BATCH),
        "ids": torch.arange(BATCH),
    }
    return set(analysed(captured(model, **inputs), axes=stated).may_step)


def test_what_is_added_or_scales_may_step_but_no_text_mask_number_or_token_of_attention() -> None:
    assert named() == {"residual", "strength"}


def test_what_the_user_states_is_never_learned() -> None:
    assert named(strength="prompt") == {"residual"}
    assert named(residual="step") == {"strength"}
