"""Wan and its relatives: full self-attention, cross-attention to text and image."""

from __future__ import annotations

from typing import Any

import torch

from .spec import Dit, noise

_CONFIG = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 20,
    "freq_dim": 32,
    "ffn_dim": 40,
    "num_layers": 2,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
}


def _wan(
    batch: int = 2,
    frames: int = 3,
    height: int = 8,
    width: int = 12,
    text: int = 7,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, frames, height, width, seed=seed, dtype=dtype),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": noise(batch, text, 20, seed=seed, dtype=dtype),
    }


_KINDS = ((r"^blocks\.\d+\.attn1$", "full"), (r"^blocks\.\d+\.attn2$", "cross"))

DITS = (Dit("wan", "WanTransformer3DModel", _CONFIG, _wan, _KINDS, "video"),)
