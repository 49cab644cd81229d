"""Where diffusers' own hooks pick the right modules, reuse is what they give."""

from __future__ import annotations

import pytest
import torch
from diffusers import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

import pab_compile
from helpers.latte import assert_different, assert_same

from .build import Denoising, build, run
from .catalogue import CATALOGUE

RANGES = {"full": 2, "joint": 2, "cross": 3}  # to diffusers, what is not cross is spatial
WINDOW = (100, 800)


@pytest.mark.long
@pytest.mark.parametrize("name", ["allegro", "cogvideox", "sd3", "wan"])
def test_reuse_is_what_the_hooks_of_diffusers_give(name: str) -> None:
    dit = CATALOGUE[name]
    model, hooked = build(dit), build(dit)
    loop = Denoising(dit)
    eager = loop.predictions(model)
    now = 0
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=RANGES["full"],
        spatial_attention_timestep_skip_range=WINDOW,
        cross_attention_block_skip_range=RANGES["cross"],
        cross_attention_timestep_skip_range=WINDOW,
        current_timestep_callback=lambda: loop.table[now],  # type: ignore[arg-type,return-value]
    )
    apply_pyramid_attention_broadcast(hooked, config)
    expected = []
    for now in range(loop.num_steps):
        expected += run(hooked, **loop.at(now))[:1]
    options = {"inner": "eager", "ranges": RANGES, "window": WINDOW}
    compiled = torch.compile(model, backend="pab", options=options)
    assert_different(eager, torch.stack(expected))
    assert_same(loop.predictions(compiled), torch.stack(expected))
    assert pab_compile.stats(compiled).notes == ()
