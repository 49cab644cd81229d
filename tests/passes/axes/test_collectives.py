"""Collectives of a model that is parallel by itself, in the graph of one of two ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from helpers.captured import (
    BATCH,
    CHANNELS,
    FRAMES,
    SPACE,
    analysed,
    attend,
    captured,
    latents_of,
    time_embedding,
    tokens_of,
)
from pab_compile.passes.parallel.check import collectives


def exchange(x: Any, received: list[int], sent: list[int]) -> Any:
    ops = torch.ops._c10d_functional
    return ops.wait_tensor(ops.all_to_all_single(x, received, sent, "0"))


def even(latents, timestep, w_in, w_time, w_out):  # type: ignore[no-untyped-def]
    """Attention along the frames of both ranks, for half of the places."""
    x = tokens_of(latents, w_in) + time_embedding(timestep, w_time)
    y = x.reshape(BATCH, FRAMES, SPACE, CHANNELS).permute(2, 0, 1, 3)
    y = exchange(y, [SPACE // 2] * 2, [SPACE // 2] * 2)
    y = y.reshape(2, SPACE // 2, BATCH, FRAMES, CHANNELS).permute(1, 2, 0, 3, 4)
    y = y.reshape(SPACE // 2 * BATCH, 2 * FRAMES, CHANNELS)
    y = linear(attend(y, y, y), w_out).reshape(SPACE // 2, BATCH, 2, FRAMES, CHANNELS)
    y = y.permute(2, 0, 1, 3, 4).reshape(SPACE, BATCH, FRAMES, CHANNELS)
    y = exchange(y, [SPACE // 2] * 2, [SPACE // 2] * 2)
    return latents_of(x + y.permute(1, 2, 0, 3).reshape(BATCH, FRAMES * SPACE, CHANNELS))


def uneven(latents, timestep, w_in, w_time, w_out):  # type: ignore[no-untyped-def]
    """The same where the other rank has two frames."""
    mine, theirs = (SPACE // 2 * BATCH * num * CHANNELS for num in (FRAMES, 2))
    x = tokens_of(latents, w_in) + time_embedding(timestep, w_time)
    y = x.reshape(BATCH, FRAMES, SPACE, CHANNELS).permute(2, 0, 1, 3).reshape(-1)
    a, b = exchange(y, [mine, theirs], [mine, mine]).split([mine, theirs])
    a = a.reshape(SPACE // 2, BATCH, FRAMES, CHANNELS)
    y = torch.cat([a, b.reshape(SPACE // 2, BATCH, 2, CHANNELS)], 2)
    y = y.reshape(SPACE // 2 * BATCH, FRAMES + 2, CHANNELS)
    y = linear(attend(y, y, y), w_out).reshape(SPACE // 2, BATCH, FRAMES + 2, CHANNELS)
    a, b = y.split([FRAMES, 2], 2)
    y = exchange(torch.cat([a.reshape(-1), b.reshape(-1)]), [mine, mine], [mine, theirs])
    y = y.reshape(SPACE, BATCH, FRAMES, CHANNELS).permute(1, 2, 0, 3)
    return latents_of(x + y.reshape(BATCH, FRAMES * SPACE, CHANNELS))


@pytest.mark.parametrize(("model", "kind"), [(even, "temporal"), (uneven, "other")])
def test_attention_between_exchanges_is_a_site_that_holds_them(model: Any, kind: str) -> None:
    """Uneven parts lose their names: ``other`` is reused only where the plan names it.

    Behind them there is more to cache than before, and it is cached all the same.
    """
    sites = [site for site in analysed(captured(model)).sites if site.kind != "mlp"]
    assert [site.kind for site in sites] == [kind]
    assert sites[0].can_broadcast and len(collectives(sites[0].region)) == 2
