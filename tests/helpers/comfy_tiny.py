"""What tiny models of ComfyUI have in common: ``comfy_models`` lists them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TEXT = 16
"""Channels of all prompts."""


@dataclass(frozen=True)
class Tiny:
    """How a tiny model is made and called.

    Args:
        config: the class of ``comfy.supported_models``.
        latents: the shape of the latents, with the batch.
        unet: the arguments of the module.
        pooled: channels of the pooled prompt, or None.
        has_mask: whether a prompt has an attention mask.
        text: channels of the prompt.
        extras: further entries of a prompt: shapes, or values.
    """

    config: str
    latents: tuple[int, ...]
    unet: dict[str, Any]
    pooled: int | None = None
    has_mask: bool = False
    text: int = TEXT
    extras: dict[str, Any] = field(default_factory=dict)


PICTURE = (1, 16, 8, 8)
VIDEO = (1, 16, 2, 8, 8)
FLUX: dict[str, Any] = {
    "in_channels": 16,
    "patch_size": 2,
    "out_channels": 16,
    "vec_in_dim": 8,
    "context_in_dim": TEXT,
    "hidden_size": 48,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 2,
    "axes_dim": [8, 8, 8],
    "theta": 10000,
    "qkv_bias": True,
}
CHROMA = {key: value for key, value in FLUX.items() if key != "vec_in_dim"} | {
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": 48,
    "hidden_dim": 32,
    "n_layers": 1,
}
HUNYUAN = FLUX | {
    "image_model": "hunyuan_video",
    "patch_size": [1, 2, 2],
    "theta": 256,
    "guidance_embed": True,
    "byt5": False,
    "meanflow": False,
}
WAN: dict[str, Any] = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "in_dim": 16,
    "dim": 48,
    "out_dim": 16,
    "ffn_dim": 96,
    "freq_dim": 32,
    "text_dim": TEXT,
    "num_heads": 2,
    "num_layers": 2,
}
COSMOS: dict[str, Any] = {
    "max_img_h": 32,
    "max_img_w": 32,
    "max_frames": 16,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 48,
    "concat_padding_mask": True,
    "crossattn_emb_channels": TEXT,
    "pos_emb_cls": "rope3d",
    "pos_emb_interpolation": "crop",
    "use_adaln_lora": True,
    "adaln_lora_dim": 8,
    "num_blocks": 2,
    "num_heads": 2,
    "rope_h_extrapolation_ratio": 1.0,
    "rope_w_extrapolation_ratio": 1.0,
    "rope_t_extrapolation_ratio": 2.0,
    "extra_h_extrapolation_ratio": 1.0,
    "extra_w_extrapolation_ratio": 1.0,
    "extra_t_extrapolation_ratio": 1.0,
}
UNET: dict[str, Any] = {
    "image_size": 8,
    "use_spatial_transformer": True,
    "legacy": False,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "context_dim": TEXT,
    "num_heads": 2,
    "num_head_channels": -1,
    "use_temporal_attention": False,
}
