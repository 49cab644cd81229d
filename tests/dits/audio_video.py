"""Models that denoise a video and its sound together."""

from __future__ import annotations

from typing import Any

import torch

from .spec import Dit, Sizes, inputs_of

_LTX2 = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "cross_attention_dim": 24,
    "audio_in_channels": 5,
    "audio_out_channels": 5,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
    "num_layers": 2,
    "caption_channels": 14,
    "gated_attn": True,
    "audio_gated_attn": True,
}
_KANDINSKY6 = {
    "in_visual_dim": 4,
    "out_visual_dim": 4,
    "in_text_dim": 14,
    "in_text_dim2": 9,
    "time_dim": 18,
    "model_dim": 32,
    "ff_dim": 40,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "axes_dims": (4, 4, 8),
    "visual_cond": False,
    "in_audio_dim": 5,
    "out_audio_dim": 5,
    "cross_gates": True,
    "ca_rope": True,
}
_KANDINSKY6_KINDS = (
    (r"^(video|audio)_text_transformer_blocks\.\d+\.attn$", "text"),
    (r"\.video_dec_block\.self_attention$", "full"),
    (r"\.video_dec_block\.cross_attention$", "cross"),
)


def _ltx2(sizes: Sizes) -> dict[str, Any]:
    tokens = sizes.frames * sizes.height * sizes.width
    return {
        "hidden_states": sizes.noise(sizes.batch, tokens, 4),
        "audio_hidden_states": sizes.noise(sizes.batch, 11, 5),
        "encoder_hidden_states": sizes.noise(sizes.batch, sizes.text, 14),
        "audio_encoder_hidden_states": sizes.noise(sizes.batch, sizes.text, 14, salt=1),
        "timestep": sizes.timestep(),
        "encoder_attention_mask": torch.ones(sizes.batch, sizes.text),
        "audio_encoder_attention_mask": torch.ones(sizes.batch, sizes.text),
        "num_frames": sizes.frames,
        "height": sizes.height,
        "width": sizes.width,
        "audio_num_frames": 11,
    }


def _refiner(sizes: Sizes) -> dict[str, Any]:
    tokens = sizes.frames * sizes.height * sizes.width
    table = (sizes.noise(1, tokens, 24), sizes.noise(1, tokens, 24, salt=1))
    return {
        "hidden_states": sizes.noise(sizes.batch, tokens, 4),
        "encoder_hidden_states": sizes.noise(sizes.batch, sizes.text, 14),
        "timestep": sizes.timestep(),
        "video_rotary_emb": table,
        "encoder_attention_mask": torch.ones(sizes.batch, sizes.text),
    }


def _kandinsky6(sizes: Sizes) -> dict[str, Any]:
    return {
        "hidden_states": sizes.noise(sizes.batch, sizes.frames, sizes.height, sizes.width, 4),
        "encoder_hidden_states": sizes.noise(sizes.batch, sizes.text, 14),
        "pooled_projections": sizes.noise(sizes.batch, 9),
        "timestep": sizes.timestep(500.0),
    }


def _kandinsky6_sound(sizes: Sizes) -> dict[str, Any]:
    return {**_kandinsky6(sizes), "audio_hidden_states": sizes.noise(sizes.batch, 11, 5)}


def _minimax(sizes: Sizes) -> dict[str, Any]:
    video, audio = sizes.frames * sizes.height * sizes.width // 4, 11
    total = sizes.text + video + audio
    order = torch.arange(total)
    parts = order.split([sizes.text, video, audio])
    tags = torch.cat([torch.full_like(part, tag) for tag, part in enumerate(parts)])
    return {
        "hidden_states": sizes.noise(1, video, 16),
        "audio_hidden_states": sizes.noise(1, audio, 5),
        "encoder_hidden_states": sizes.noise(1, sizes.text, 14),
        "timestep": torch.full((1,), 500.0),
        "timestep_indices": torch.zeros(total, dtype=torch.long),
        "token_tags": tags,
        "position_ids": torch.stack([order, order % 5, order % 7], 1),
        "text_indices": parts[0],
        "video_indices": parts[1],
        "audio_indices": parts[2],
    }


DITS = (
    Dit(
        "ltx2",
        "LTX2VideoTransformer3DModel",
        _LTX2,
        inputs_of(_ltx2, height=4, width=6),
        (
            (r"^transformer_blocks\.\d+\.attn1$", "full"),
            (r"^transformer_blocks\.\d+\.attn2$", "cross"),
            (r"^transformer_blocks\.\d+\.audio_to_video_attn$", "cross"),
            (r"^transformer_blocks\.\d+\.(audio_attn[12]|video_to_audio_attn)$", "other"),
        ),
        "video",
        notes="every attention has a gate of its own; the sound's attention is not broadcast",
        sizes={"height": 4, "width": 5},
    ),
    Dit(
        "sana_wm_refiner",
        "SanaWMLTX2RefinerTransformer3DModel",
        _LTX2,
        inputs_of(_refiner, height=4, width=6),
        (
            (r"^transformer_blocks\.\d+\.attn1$", "full"),
            (r"^transformer_blocks\.\d+\.attn2$", "cross"),
        ),
        "video",
        notes="called without its cache of earlier frames",
        sizes={"height": 4, "width": 5},
    ),
    Dit(
        "kandinsky6",
        "Kandinsky6Transformer3DModel",
        _KANDINSKY6,
        inputs_of(_kandinsky6),
        _KANDINSKY6_KINDS,
        "video",
        notes="video only; the prompt is refined for the sound nevertheless",
        unused=r"^audio_text_transformer_blocks",
    ),
    Dit(
        "kandinsky6_sound",
        "Kandinsky6Transformer3DModel",
        _KANDINSKY6,
        inputs_of(_kandinsky6_sound),
        (
            *_KANDINSKY6_KINDS,
            (r"\.va_cross_attention$", "cross"),
            (r"\.(av_cross_attention|audio_dec_block\.(self|cross)_attention)$", "other"),
        ),
        "video",
        notes="the sound's attention is not broadcast",
    ),
    Dit(
        "minimax_h3",
        "MiniMaxH3Transformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 32,
            "hidden_size": 24,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "ffn_dim": 40,
            "in_channels": 4,
            "audio_in_channels": 5,
            "text_dim": 14,
            "freq_dim": 32,
            "time_embed_hidden_dim": 18,
            "time_embed_dim": 12,
            "rope_freq_dim": 4,
        },
        inputs_of(_minimax),
        (
            (r"^token_refiner\..*\.attn$", "text"),
            (r"^transformer_blocks\.\d+\.attn$", "joint"),
        ),
        "video",
        notes="prompt, video and sound are scattered into one sequence",
    ),
)
