"""Wan and its relatives: full self-attention, cross-attention to text and image."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import torch
from diffusers.models.transformers import transformer_wan_animate_2
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from .spec import Dit, Sizes, inputs_of

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
    "rope_max_seq_len": 32,
}
_IMAGE = {"image_dim": 16, "added_kv_proj_dim": 24}
_KINDS = ((r"^blocks\.\d+\.attn1$", "full"), (r"^blocks\.\d+\.attn2$", "cross"))
_TWO_CONTEXTS = "cross-attention to text and to the image, added: one site"


def _wan(sizes: Sizes) -> dict[str, Any]:
    return {
        "hidden_states": sizes.noise(sizes.batch, 4, sizes.frames, sizes.height, sizes.width),
        "timestep": sizes.timestep(),
        "encoder_hidden_states": sizes.noise(sizes.batch, sizes.text, 20),
    }


def _with_image(sizes: Sizes) -> dict[str, Any]:
    # The attention takes all but the last 512 tokens of the context for the image.
    image = sizes.noise(sizes.batch, 5, 16)
    return {**_wan(sizes), "encoder_hidden_states_image": image}


def _vace(sizes: Sizes) -> dict[str, Any]:
    control = sizes.noise(sizes.batch, 6, sizes.frames, sizes.height, sizes.width)
    return {**_wan(sizes), "control_hidden_states": control}


def _anyflow(sizes: Sizes) -> dict[str, Any]:
    latents = sizes.noise(sizes.batch, sizes.frames, 4, sizes.height, sizes.width)
    times = torch.full((sizes.batch, sizes.frames), 500.0)
    return {**_wan(sizes), "hidden_states": latents, "timestep": times, "r_timestep": 0.8 * times}


def _animate(sizes: Sizes) -> dict[str, Any]:
    pose = sizes.noise(sizes.batch, 4, sizes.frames - 1, sizes.height, sizes.width)
    face = sizes.noise(sizes.batch, 3, 4 * (sizes.frames - 1), 16, 16)
    inputs = {**_with_image(sizes), "pose_hidden_states": pose, "face_pixel_values": face}
    latents = sizes.noise(sizes.batch, 12, sizes.frames, sizes.height, sizes.width)
    return {**inputs, "hidden_states": latents}


_GRID = (3, 4, 6)  # frames, rows and columns of tokens


def _animate2(sizes: Sizes) -> dict[str, Any]:
    """Inputs of a denoising step, after a first call that filled the cache of reference keys."""
    cache = WanAnimate2KVCache(1)
    num_tokens = math.prod(_GRID)
    for number, layer in enumerate(cache.layer_caches):
        pair = (sizes.noise(sizes.batch, num_tokens, 2, 12, salt=2 * number + i) for i in (0, 1))
        layer.store(*pair)

    def videos(channels: int) -> list[torch.Tensor]:
        shape = (channels, _GRID[0], 2 * _GRID[1], 2 * _GRID[2])
        return [sizes.noise(*shape, salt=channels + i) for i in range(sizes.batch)]

    return {
        "hidden_states": videos(4),
        "timestep": sizes.timestep(),
        "encoder_hidden_states": [sizes.noise(sizes.text, 20, salt=i) for i in range(sizes.batch)],
        "condition_latents": videos(3),
        "kv_cache": cache,
        "kv_cache_mode": "cached",
        "seq_len": num_tokens,
        "encoder_hidden_states_image": sizes.noise(sizes.batch, 5, 1280),
        "reference_grid_sizes": torch.tensor([_GRID] * sizes.batch),
        "origin_len": 4 * (_GRID[0] - 1),
        "origin_area": [16 * _GRID[1], 16 * _GRID[2]],
    }


def _make_mask(model: Any) -> None:
    """The model's block mask; by itself it would compile the making of it."""

    def plain(*args: Any, _compile: bool, **kwargs: Any) -> BlockMask:
        return create_block_mask(*args, **kwargs)

    size = (_GRID[0], _GRID[1] * _GRID[2])
    with mock.patch.object(transformer_wan_animate_2, "create_block_mask", plain):
        model.block_masks[size] = model.create_mask(*size, torch.device("cpu"))


DITS = (
    Dit("wan", "WanTransformer3DModel", _CONFIG, inputs_of(_wan), _KINDS, "video"),
    Dit(
        "wan_i2v",
        "WanTransformer3DModel",
        {**_CONFIG, **_IMAGE},
        inputs_of(_with_image, text=512),
        _KINDS,
        "video",
        notes=_TWO_CONTEXTS,
    ),
    Dit(
        "wan_vace",
        "WanVACETransformer3DModel",
        {**_CONFIG, "vace_layers": [0, 1], "vace_in_channels": 6},
        inputs_of(_vace),
        ((r"^(vace_)?blocks\.\d+\.attn1$", "full"), (r"^(vace_)?blocks\.\d+\.attn2$", "cross")),
        "video",
        notes="a second stack of blocks for the control video",
    ),
    Dit(
        "skyreels_v2",
        "SkyReelsV2Transformer3DModel",
        {**_CONFIG, "inject_sample_info": True},
        inputs_of(lambda sizes: {**_wan(sizes), "fps": [0, 1][: sizes.batch]}),
        _KINDS,
        "video",
    ),
    Dit(
        "chronoedit",
        "ChronoEditTransformer3DModel",
        {**_CONFIG, **_IMAGE, "rope_temporal_skip_len": 2},
        inputs_of(_with_image, text=512),
        _KINDS,
        "video",
        notes=_TWO_CONTEXTS,
    ),
    Dit("anyflow", "AnyFlowTransformer3DModel", _CONFIG, inputs_of(_anyflow), _KINDS, "video"),
    Dit(
        "wan_animate",
        "WanAnimateTransformer3DModel",
        {
            **_CONFIG,
            **_IMAGE,
            "in_channels": 12,
            "latent_channels": 4,
            "motion_encoder_channel_sizes": {"4": 6, "8": 6, "16": 6},
            "motion_encoder_size": 16,
            "motion_style_dim": 10,
            "motion_dim": 5,
            "motion_encoder_dim": 14,
            "face_encoder_hidden_dim": 9,
            "face_encoder_num_heads": 3,
            "inject_face_latents_blocks": 1,
        },
        inputs_of(_animate, text=512),
        (*_KINDS, (r"^face_adapter\.\d+$", "cross")),
        "video",
        notes="cross-attention to the face, frame by frame",
    ),
    Dit(
        "wan_animate_2",
        "WanAnimate2Transformer3DModel",
        {
            "in_dim": 7,
            "out_dim": 4,
            "dim": 24,
            "ffn_dim": 40,
            "freq_dim": 32,
            "text_dim": 20,
            "text_len": 9,
            "num_heads": 2,
            "num_layers": 1,
        },
        inputs_of(_animate2),
        ((r"^blocks\.\d+\.self_attn$", "full"), (r"^blocks\.\d+\.cross_attn$", "cross")),
        "video",
        notes="attends to a reference picture too, in one buffer; reads the sizes of its "
        "grids from tensors in every block, one of them the caller's",
        prepare=_make_mask,
    ),
)
