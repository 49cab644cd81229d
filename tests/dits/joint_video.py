"""Video models whose attention runs over prompt and video tokens together."""

from __future__ import annotations

from typing import Any

import torch

from .spec import Dit, noise


def _cogvideox(
    batch: int = 2,
    frames: int = 3,
    height: int = 8,
    width: int = 12,
    text: int = 7,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, frames, 4, height, width, seed=seed, dtype=dtype),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": noise(batch, text, 10, seed=seed, dtype=dtype),
    }


DITS = (
    Dit(
        "cogvideox",
        "CogVideoXTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 5,
            "text_embed_dim": 10,
            "num_layers": 2,
            "sample_width": 12,
            "sample_height": 8,
            "sample_frames": 9,
            "patch_size": 2,
            "temporal_compression_ratio": 4,
            "max_text_seq_length": 7,
        },
        _cogvideox,
        ((r"^transformer_blocks\.\d+\.attn1$", "joint"),),
        "video",
    ),
)
