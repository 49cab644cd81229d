"""Attention within frames and attention over frames, in layers of their own."""

from __future__ import annotations

from typing import Any

from .spec import Dit, Sizes, inputs_of


def _latte(sizes: Sizes) -> dict[str, Any]:
    return {
        "hidden_states": sizes.noise(sizes.batch, 4, sizes.frames, sizes.height, sizes.width),
        "timestep": sizes.timestep(),
        "encoder_hidden_states": sizes.noise(sizes.batch, sizes.text, 10),
    }


def _temporal(sizes: Sizes) -> dict[str, Any]:
    frames = sizes.batch * sizes.frames
    return {
        "hidden_states": sizes.noise(frames, 4, sizes.height, sizes.width),
        "timestep": sizes.timestep(),
        "num_frames": sizes.frames,
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
        inputs_of(_latte),
        (
            (r"^temporal_transformer_blocks\.\d+\.attn1$", "temporal"),
            (r"^transformer_blocks\.\d+\.attn1$", "spatial"),
            (r"^transformer_blocks\.\d+\.attn2$", "cross"),
        ),
        "video",
    ),
    Dit(
        "transformer_temporal",
        "TransformerTemporalModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 10,
            "in_channels": 4,
            "norm_num_groups": 2,
            "num_layers": 2,
        },
        inputs_of(_temporal),
        ((r"^transformer_blocks\.\d+\.attn[12]$", "temporal"),),
        "video",
        notes="a part of U-Nets; it ignores the timestep, so nothing tells the step",
        unsupported="No timestep was found",
    ),
)
