"""Attention within frames and attention over frames, in layers of their own."""

from __future__ import annotations

from typing import Any

import torch

from .spec import Dit, noise


def _latte(
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
        "encoder_hidden_states": noise(batch, text, 10, seed=seed, dtype=dtype),
    }


DITS = (
    Dit(
        "latte",
        "LatteTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 10,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "cross_attention_dim": 20,
            "attention_bias": True,
            "sample_size": 8,
            "patch_size": 2,
            "activation_fn": "gelu-approximate",
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "norm_eps": 1e-6,
            "caption_channels": 10,
            "video_length": 3,
        },
        _latte,
        (
            (r"^temporal_transformer_blocks\.\d+\.attn1$", "temporal"),
            (r"^transformer_blocks\.\d+\.attn1$", "spatial"),
            (r"^transformer_blocks\.\d+\.attn2$", "cross"),
        ),
        "video",
    ),
)
