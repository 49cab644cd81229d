"""Video models with full self-attention, and cross-attention to the prompt."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

from .spec import Dit, Sizes, inputs_of

_KINDS = (
    (r"^transformer_blocks\.\d+\.attn1$", "full"),
    (r"^transformer_blocks\.\d+\.attn2$", "cross"),
)


def _latents(sizes: Sizes) -> torch.Tensor:
    return sizes.noise(sizes.batch, 4, sizes.frames, sizes.height, sizes.width)


def _allegro(sizes: Sizes) -> dict[str, Any]:
    grid = (sizes.height // 2, sizes.width // 2)
    *tables, t, h, w = get_3d_rotary_pos_embed_allegro(18, ((0, 0), grid), grid, sizes.frames)
    where = torch.cartesian_prod(t.long(), h.long(), w.long()).T.reshape(3, 1, -1).contiguous()
    return {
        "hidden_states": _latents(sizes),
        "timestep": sizes.timestep(),
        "encoder_hidden_states": sizes.noise(sizes.batch, sizes.text, 10),
        "encoder_attention_mask": torch.ones(sizes.batch, sizes.text),
        "image_rotary_emb": (tuple(tables), tuple(where)),
    }


def _cosmos(sizes: Sizes) -> dict[str, Any]:
    return {
        "hidden_states": _latents(sizes),
        "timestep": sizes.timestep(500.0),
        "encoder_hidden_states": sizes.noise(sizes.batch, sizes.text, 10),
    }


def _cosmos_image(sizes: Sizes) -> dict[str, Any]:
    context = (sizes.noise(sizes.batch, sizes.text, 10), sizes.noise(sizes.batch, 5, 15))
    return {**_cosmos(sizes), "encoder_hidden_states": context}


def _ltx(sizes: Sizes) -> dict[str, Any]:
    tokens = sizes.frames * sizes.height * sizes.width
    return {
        "hidden_states": sizes.noise(sizes.batch, tokens, 4),
        "timestep": sizes.timestep(),
        "encoder_hidden_states": sizes.noise(sizes.batch, sizes.text, 14),
        "encoder_attention_mask": torch.ones(sizes.batch, sizes.text, dtype=torch.bool),
        "num_frames": sizes.frames,
        "height": sizes.height,
        "width": sizes.width,
    }


def _sana(sizes: Sizes) -> dict[str, Any]:
    return {
        "hidden_states": _latents(sizes),
        "timestep": sizes.timestep(),
        "encoder_hidden_states": sizes.noise(sizes.batch, sizes.text, 14),
    }


def _kandinsky5(sizes: Sizes) -> dict[str, Any]:
    return {
        "hidden_states": sizes.noise(sizes.batch, sizes.frames, sizes.height, sizes.width, 4),
        "timestep": sizes.timestep(500.0),
        "encoder_hidden_states": sizes.noise(sizes.batch, sizes.text, 14),
        "pooled_projections": sizes.noise(sizes.batch, 9),
        "visual_rope_pos": [
            torch.arange(size) for size in (sizes.frames, sizes.height // 2, sizes.width // 2)
        ],
        "text_rope_pos": torch.arange(sizes.text),
        "scale_factor": (1.0, 2.0, 2.0),
    }


def _helios(sizes: Sizes) -> dict[str, Any]:
    def frames(count: int, first: int) -> torch.Tensor:
        return torch.arange(first, first + count).expand(sizes.batch, -1)

    def history(count: int) -> torch.Tensor:
        return sizes.noise(sizes.batch, 4, count, sizes.height, sizes.width, salt=count)

    return {
        "hidden_states": _latents(sizes),
        "timestep": sizes.timestep(),
        "encoder_hidden_states": sizes.noise(sizes.batch, sizes.text, 14),
        "indices_hidden_states": frames(sizes.frames, 7),
        "indices_latents_history_short": frames(1, 6),
        "indices_latents_history_mid": frames(2, 4),
        "indices_latents_history_long": frames(4, 0),
        "latents_history_short": history(1),
        "latents_history_mid": history(2),
        "latents_history_long": history(4),
    }


_COSMOS = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 2,
    "mlp_ratio": 2,
    "text_embed_dim": 10,
    "adaln_lora_dim": 5,
    "max_size": (9, 32, 32),
    "concat_padding_mask": False,  # it needs torchvision
}

DITS = (
    Dit(
        "allegro",
        "AllegroTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 18,
            "num_layers": 2,
            "cross_attention_dim": 36,
            "sample_height": 8,
            "sample_width": 12,
            "sample_frames": 3,
            "caption_channels": 10,
        },
        inputs_of(_allegro),
        _KINDS,
        "video",
    ),
    Dit("cosmos", "CosmosTransformer3DModel", _COSMOS, inputs_of(_cosmos), _KINDS, "video"),
    Dit(
        "cosmos_image",
        "CosmosTransformer3DModel",
        {
            **_COSMOS,
            "img_context_dim_in": 15,
            "img_context_num_tokens": 5,
            "img_context_dim_out": 24,
            "extra_pos_embed_type": None,
        },
        inputs_of(_cosmos_image),
        _KINDS,
        "video",
        notes="cross-attention to text and to the image, each with queries of its own: one site",
    ),
    Dit(
        "ltx",
        "LTXVideoTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 10,
            "cross_attention_dim": 20,
            "num_layers": 2,
            "caption_channels": 14,
        },
        inputs_of(_ltx, height=4, width=6),
        _KINDS,
        "video",
        notes="packed tokens",
        sizes={"height": 4, "width": 5},
    ),
    Dit(
        "sana_video",
        "SanaVideoTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 2,
            "num_cross_attention_heads": 3,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": 24,
            "caption_channels": 14,
            "sample_size": 8,
            "rope_max_seq_len": 32,
        },
        inputs_of(_sana),
        _KINDS,
        "video",
        mechanism={"full": "linear"},
    ),
    Dit(
        "kandinsky5",
        "Kandinsky5Transformer3DModel",
        {
            "in_visual_dim": 4,
            "in_text_dim": 14,
            "in_text_dim2": 9,
            "time_dim": 18,
            "out_visual_dim": 4,
            "model_dim": 32,
            "ff_dim": 40,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
            "axes_dims": (4, 4, 8),
        },
        inputs_of(_kandinsky5, batch=1),
        (
            (r"^text_transformer_blocks\.\d+\.self_attention$", "text"),
            (r"^visual_transformer_blocks\.\d+\.self_attention$", "full"),
            (r"^visual_transformer_blocks\.\d+\.cross_attention$", "cross"),
        ),
        "video",
        notes="channels last; called with one video at a time",
    ),
    Dit(
        "helios",
        "HeliosTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 14,
            "freq_dim": 32,
            "ffn_dim": 40,
            "num_layers": 2,
            "rope_dim": (4, 4, 4),
            "is_amplify_history": True,
        },
        inputs_of(_helios),
        ((r"^blocks\.\d+\.attn1$", "full"), (r"^blocks\.\d+\.attn2$", "cross")),
        "video",
        notes="attends to frames of the history, at three resolutions",
    ),
)
