"""Transformers of the picture pipelines."""

from __future__ import annotations

from dits.spec import Dit

_JOINT = ((r"transformer_blocks\.\d+\.attn$", "joint"),)
PICTURES = {
    dit.name: dit
    for dit in (
        Dit(
            "flux",
            "FluxTransformer2DModel",
            {
                "in_channels": 4,
                "num_layers": 1,
                "num_single_layers": 1,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "joint_attention_dim": 12,
                "pooled_projection_dim": 10,
                "guidance_embeds": True,
                "axes_dims_rope": (4, 4, 8),
            },
            dict,
            _JOINT,
            "image",
        ),
        Dit(
            "sd3",
            "SD3Transformer2DModel",
            {
                "sample_size": 12,
                "in_channels": 4,
                "out_channels": 4,
                "num_layers": 2,
                "num_attention_heads": 4,
                "attention_head_dim": 8,
                "caption_projection_dim": 32,
                "joint_attention_dim": 12,
                "pooled_projection_dim": 10,
            },
            dict,
            _JOINT,
            "image",
        ),
    )
}
