"""Video models whose attention runs over prompt and video tokens together."""

from __future__ import annotations

from typing import Any

import torch

from .spec import Dit, Sizes, inputs_of

_COGVIDEOX = {
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
}


def _cogvideox(sizes: Sizes) -> dict[str, Any]:
    return {
        "hidden_states": sizes.noise(sizes.batch, sizes.frames, 4, sizes.height, sizes.width),
        "timestep": sizes.timestep(),
        "encoder_hidden_states": sizes.noise(sizes.batch, sizes.text, 10),
    }


def _consisid(sizes: Sizes) -> dict[str, Any]:
    return {
        **_cogvideox(sizes),
        "id_cond": sizes.noise(sizes.batch, 11),
        "id_vit_hidden": [sizes.noise(sizes.batch, 9, 14, salt=1 + i) for i in range(2)],
    }


def _mochi(sizes: Sizes) -> dict[str, Any]:
    lengths = torch.arange(sizes.text, 0, -2)[: sizes.batch]
    return {
        "hidden_states": sizes.noise(sizes.batch, 4, sizes.frames, sizes.height, sizes.width),
        "timestep": sizes.timestep(),
        "encoder_hidden_states": sizes.noise(sizes.batch, sizes.text, 16),
        "encoder_attention_mask": torch.arange(sizes.text)[None] < lengths[:, None],
    }


def _easyanimate(sizes: Sizes) -> dict[str, Any]:
    return {
        "hidden_states": sizes.noise(sizes.batch, 4, sizes.frames, sizes.height, sizes.width),
        "timestep": sizes.timestep(),
        "encoder_hidden_states": sizes.noise(sizes.batch, sizes.text, 10),
        "encoder_hidden_states_t5": sizes.noise(sizes.batch, 5, 11),
    }


_JOY = {
    "in_channels": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": 10,
    "mlp_width_ratio": 2.0,
    "num_layers": 2,
    "rope_dim_list": [4, 6, 6],
}


def _joy(sizes: Sizes) -> dict[str, Any]:
    return {
        "hidden_states": sizes.noise(sizes.batch, 4, sizes.frames, sizes.height, sizes.width),
        "timestep": sizes.timestep(),
        "encoder_hidden_states": sizes.noise(sizes.batch, sizes.text, 10),
    }


def _joy_items(sizes: Sizes) -> dict[str, Any]:
    shape = (sizes.batch, sizes.frames, 4, 1, sizes.height, sizes.width)
    return {**_joy(sizes), "hidden_states": sizes.noise(*shape)}


def _joy_plus(sizes: Sizes) -> dict[str, Any]:
    grid = (1, sizes.height // 2, sizes.width // 2)
    patches = sizes.frames * sizes.height * sizes.width // 4
    return {
        **_joy(sizes),
        "hidden_states": sizes.noise(sizes.batch, patches, 4, 1, 2, 2),
        "encoder_hidden_states_mask": torch.ones(sizes.batch, sizes.text),
        "shape_list": [[grid] * sizes.frames for _ in range(sizes.batch)],
    }


DITS = (
    Dit(
        "cogvideox",
        "CogVideoXTransformer3DModel",
        _COGVIDEOX,
        inputs_of(_cogvideox),
        ((r"^transformer_blocks\.\d+\.attn1$", "joint"),),
        "video",
    ),
    Dit(
        "consisid",
        "ConsisIDTransformer3DModel",
        {
            **_COGVIDEOX,
            "is_train_face": True,
            "cross_attn_interval": 1,
            "cross_attn_dim_head": 6,
            "cross_attn_num_heads": 3,
            "LFE_id_dim": 11,
            "LFE_vit_dim": 14,
            "LFE_depth": 2,
            "LFE_dim_head": 6,
            "LFE_num_heads": 3,
            "LFE_num_id_token": 4,
            "LFE_num_querie": 13,
            "LFE_output_dim": 21,
            "LFE_ff_mult": 2,
            "LFE_num_scale": 2,
        },
        inputs_of(_consisid),
        (
            (r"^transformer_blocks\.\d+\.attn1$", "joint"),
            (r"^perceiver_cross_attention\.\d+$", "cross"),
            (r"^local_facial_extractor\.layers\.\d+\.0$", "other"),
        ),
        "video",
        mechanism={"cross": "softmax", "other": "softmax"},
        notes="cross-attention to the face, written out by hand",
    ),
    Dit(
        "mochi",
        "MochiTransformer3DModel",
        {
            "patch_size": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 10,
            "num_layers": 2,
            "pooled_projection_dim": 14,
            "in_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 6,
            "max_sequence_length": 7,
        },
        inputs_of(_mochi),
        ((r"^transformer_blocks\.\d+\.attn1$", "joint"), (r"\.pooler$", "other")),
        "video",
        notes="the attention loops over the batch, and keeps the valid tokens of the prompt only: "
        "with `torch.compiler.config.capture_dynamic_output_shape_ops`",
        switches={"capture_dynamic_output_shape_ops": True},
    ),
    Dit(
        "easyanimate",
        "EasyAnimateTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 2,
            "num_layers": 3,
            "mmdit_layers": 2,
            "time_embed_dim": 6,
            "text_embed_dim": 10,
            "text_embed_dim_t5": 11,
        },
        inputs_of(_easyanimate),
        ((r"^transformer_blocks\.\d+\.attn1$", "joint"),),
        "video",
    ),
    Dit(
        "joy_image_edit",
        "JoyImageEditTransformer3DModel",
        _JOY,
        inputs_of(_joy),
        ((r"^double_blocks\.\d+\.attn$", "joint"),),
        "video",
    ),
    Dit(
        "joy_image_edit_items",
        "JoyImageEditTransformer3DModel",
        _JOY,
        inputs_of(_joy_items),
        ((r"^double_blocks\.\d+\.attn$", "joint"),),
        "video",
        notes="several images, as frames",
        options={"axes": {"hidden_states": "b t c n h w"}},
    ),
    Dit(
        "joy_image_edit_plus",
        "JoyImageEditPlusTransformer3DModel",
        _JOY,
        inputs_of(_joy_plus),
        ((r"^double_blocks\.\d+\.attn$", "joint"),),
        "video",
        notes="patches of several images in one sequence",
        options={"axes": {"hidden_states": "b s c pt ph pw"}},
    ),
)
