"""HunyuanVideo and its relatives: joint attention, a refiner for the prompt, history frames."""

from __future__ import annotations

from typing import Any

import torch

from .spec import Dit, Sizes, inputs_of

_CONFIG = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 10,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "patch_size": 2,
    "patch_size_t": 1,
    "text_embed_dim": 14,
    "pooled_projection_dim": 9,
    "rope_axes_dim": (2, 4, 4),
}
_KINDS = (
    (r"^context_embedder\..*\.attn$", "text"),
    (r"^(single_)?transformer_blocks\.\d+\.attn$", "joint"),
)


def _hunyuan(sizes: Sizes) -> dict[str, Any]:
    return {
        "hidden_states": sizes.noise(sizes.batch, 4, sizes.frames, sizes.height, sizes.width),
        "timestep": sizes.timestep(500.0),
        "encoder_hidden_states": sizes.noise(sizes.batch, sizes.text, 14),
        "encoder_attention_mask": torch.ones(sizes.batch, sizes.text),
        "pooled_projections": sizes.noise(sizes.batch, 9),
        "guidance": torch.full((sizes.batch,), 6000.0),
    }


def _hunyuan15(sizes: Sizes) -> dict[str, Any]:
    inputs = _hunyuan(sizes)
    del inputs["pooled_projections"], inputs["guidance"]
    return {
        **inputs,
        "encoder_hidden_states_2": sizes.noise(sizes.batch, 5, 11),
        "encoder_attention_mask_2": torch.ones(sizes.batch, 5),
        "image_embeds": sizes.noise(sizes.batch, 9, 15),
    }


def _framepack(sizes: Sizes) -> dict[str, Any]:
    def frames(count: int, first: int) -> torch.Tensor:
        return torch.arange(first, first + count)

    def history(count: int) -> torch.Tensor:
        return sizes.noise(sizes.batch, 4, count, sizes.height, sizes.width, salt=count)

    return {
        **_hunyuan(sizes),
        "image_embeds": sizes.noise(sizes.batch, 5, 15),
        "indices_latents": frames(sizes.frames, 7),
        "latents_clean": history(1),
        "indices_latents_clean": frames(1, 6),
        "latents_history_2x": history(2),
        "indices_latents_history_2x": frames(2, 4),
        "latents_history_4x": history(4),
        "indices_latents_history_4x": frames(4, 0),
    }


def _motif(sizes: Sizes) -> dict[str, Any]:
    return {
        "hidden_states": sizes.noise(sizes.batch, 4, sizes.frames, sizes.height, sizes.width),
        "timestep": sizes.timestep(500.0),
        "encoder_hidden_states": sizes.noise(sizes.batch, sizes.text, 14),
        "encoder_attention_mask": torch.ones(sizes.batch, sizes.text),
        "image_embeds": sizes.noise(sizes.batch, 5, 15),
    }


DITS = (
    Dit(
        "hunyuan_video",
        "HunyuanVideoTransformer3DModel",
        _CONFIG,
        inputs_of(_hunyuan),
        _KINDS,
        "video",
        notes="attention and MLP of the single blocks share one output projection",
    ),
    Dit(
        "hunyuan_video_i2v",
        "HunyuanVideoTransformer3DModel",
        {**_CONFIG, "image_condition_type": "token_replace"},
        inputs_of(_hunyuan),
        _KINDS,
        "video",
        notes="the tokens of the first frame have gates of their own",
    ),
    Dit(
        "hunyuan_video_15",
        "HunyuanVideo15Transformer3DModel",
        {
            **{
                key: _CONFIG[key]
                for key in _CONFIG
                if key not in ("num_single_layers", "pooled_projection_dim")
            },
            "text_embed_2_dim": 11,
            "image_embed_dim": 15,
        },
        inputs_of(_hunyuan15),
        _KINDS,
        "video",
        notes="looks at the image embeddings' values, and sorts tokens by their masks",
        options={"axes": {"hidden_states": "b c t h w"}},
        graphs=3,
    ),
    Dit(
        "hunyuan_video_framepack",
        "HunyuanVideoFramepackTransformer3DModel",
        {**_CONFIG, "has_image_proj": True, "image_proj_dim": 15, "has_clean_x_embedder": True},
        inputs_of(_framepack),
        _KINDS,
        "video",
        notes="tokens of the history at three resolutions come before the video's",
        options={"axes": {"hidden_states": "b c t h w"}},
        graphs=4,
    ),
    Dit(
        "motif_video",
        "MotifVideoTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 10,
            "num_layers": 1,
            "num_single_layers": 2,
            "num_decoder_layers": 1,
            "patch_size": 2,
            "text_embed_dim": 14,
            "image_embed_dim": 15,
            "rope_axes_dim": (2, 4, 4),
            "enable_text_cross_attention_dual": True,
            "enable_text_cross_attention_single": True,
        },
        inputs_of(_motif),
        (
            (r"^single_transformer_blocks\.1\.attn$", "full"),
            (r"transformer_blocks\.\d+\.attn$", "joint"),
            (r"transformer_blocks\.\d+\.cross_attn$", "cross"),
        ),
        "video",
        notes="its decoder attends to decoder and encoder tokens of the same video",
    ),
)
