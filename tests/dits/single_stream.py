"""Image models that put text and picture into one sequence inside the model."""

from __future__ import annotations

from typing import Any

import torch

from .draw import Draw, at
from .spec import Dit

_TEXT_DIM = 12


def _lumina2(
    batch: int = 2,
    frames: int = 1,
    height: int = 8,
    width: int = 12,
    text: int = 7,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    del frames
    draw = Draw(seed, dtype)
    mask = torch.ones(batch, text, dtype=torch.bool)
    mask[-1, -1] = False
    return {
        "hidden_states": draw(batch, 4, height, width),
        "timestep": at(batch, 0.5),
        "encoder_hidden_states": draw(batch, text, _TEXT_DIM),
        "encoder_attention_mask": mask,
    }


def _z_image(
    batch: int = 2,
    frames: int = 1,
    height: int = 8,
    width: int = 12,
    text: int = 7,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    del frames
    draw = Draw(seed, dtype)
    return {
        "x": [draw(4, 1, height, width) for _ in range(batch)],
        "t": at(batch, 0.5),
        "cap_feats": [draw(text, _TEXT_DIM) for _ in range(batch)],
    }


def _z_image_one(**sizes: Any) -> dict[str, Any]:
    return _z_image(**sizes | {"batch": 1})


def _ernie(
    batch: int = 2,
    frames: int = 1,
    height: int = 4,
    width: int = 6,
    text: int = 7,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    del frames
    draw = Draw(seed, dtype)
    return {
        "hidden_states": draw(batch, 4, height, width),
        "timestep": at(batch, 500.0),
        "text_bth": draw(batch, text, _TEXT_DIM),
        "text_lens": torch.tensor([text - i for i in range(batch)]),
    }


def _omnigen(
    batch: int = 2,
    frames: int = 1,
    height: int = 8,
    width: int = 12,
    text: int = 7,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    del frames
    draw = Draw(seed, dtype)
    total = text + 1 + height * width // 4
    mask = torch.ones(batch, total, total)
    mask[:, : text + 1, text + 1 :] = 0
    return {
        "hidden_states": draw(batch, 4, height, width),
        "timestep": at(batch, 0.5),
        "input_ids": draw.integers(20, batch, text),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": mask,
        "position_ids": torch.arange(total).expand(batch, -1),
    }


def _fibo2(
    batch: int = 2,
    frames: int = 1,
    height: int = 8,
    width: int = 12,
    text: int = 7,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    del frames
    draw = Draw(seed, dtype)
    return {
        "hidden_states": draw(batch, 4, height, width),
        "timestep": at(batch, 0.5),
        "encoder_hidden_states": draw(batch, 2, text, _TEXT_DIM),
    }


_Z_IMAGE = (
    {"in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2}
    | {"n_kv_heads": 2, "cap_feat_dim": _TEXT_DIM, "axes_dims": [4, 4, 8]}
    | {"axes_lens": [96, 16, 16]}
)
_REFINED = (
    (r"^noise_refiner\.\d+\.(attn|attention)$", "spatial"),
    (r"^context_refiner\.\d+\.(attn|attention)$", "text"),
    (r"^layers\.\d+\.(attn|attention)$", "joint"),
)

_Z_KINDS = (
    (r"^noise_refiner\.\d+\.attention$", "full"),
    (r"^context_refiner\.\d+\.attention$", "text"),
    (r"^layers\.\d+\.attention$", "joint"),
)

DITS = (
    Dit(
        name="lumina2",
        cls="Lumina2Transformer2DModel",
        config={"sample_size": 12, "patch_size": 2, "in_channels": 4, "hidden_size": 32}
        | {"num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 4}
        | {"num_kv_heads": 2, "multiple_of": 10, "cap_feat_dim": _TEXT_DIM}
        | {"axes_dim_rope": (4, 2, 2), "axes_lens": (32, 16, 16)},
        inputs=_lumina2,
        kinds=_REFINED,
        modality="image",
        notes="reads the prompt's length on the host; joins text and picture sample by sample",
        graphs=4,
    ),
    Dit(
        name="z_image",
        cls="ZImageTransformer2DModel",
        config=_Z_IMAGE,
        inputs=_z_image,
        kinds=_Z_KINDS,
        modality="image",
        clock="t",
        latents="x",
        notes="lists of pictures (with a frame axis) and prompts, padded to multiples of 32 tokens",
    ),
    Dit(
        name="z_image_one",
        cls="ZImageTransformer2DModel",
        config=_Z_IMAGE,
        inputs=_z_image_one,
        kinds=_Z_KINDS,
        modality="image",
        clock="t",
        latents="x",
        notes="one picture at a time",
    ),
    Dit(
        name="ernie_image",
        cls="ErnieImageTransformer2DModel",
        config={"hidden_size": 32, "num_attention_heads": 2, "num_layers": 2, "in_channels": 4}
        | {"ffn_hidden_size": 20, "out_channels": 4, "text_in_dim": _TEXT_DIM}
        | {"rope_axes_dim": (4, 4, 8)},
        inputs=_ernie,
        kinds=((r"^layers\.\d+\.self_attention$", "joint"),),
        modality="image",
        notes="tokens come before the batch",
    ),
    Dit(
        name="omnigen",
        cls="OmniGenTransformer2DModel",
        config={"in_channels": 4, "patch_size": 2, "hidden_size": 32, "num_attention_heads": 4}
        | {"num_key_value_heads": 4, "intermediate_size": 20, "num_layers": 2, "vocab_size": 22}
        | {"pad_token_id": 0, "pos_embed_max_size": 12, "time_step_dim": 18}
        | {"rope_scaling": {"short_factor": [1.0] * 4, "long_factor": [1.0] * 4}},
        inputs=_omnigen,
        kinds=((r"^layers\.\d+\.self_attn$", "joint"),),
        modality="image",
        notes="text comes as token ids; the timestep is a token; compares positions on the host",
        graphs=4,
    ),
    Dit(
        name="bria_fibo2",
        cls="BriaFibo2Transformer2DModel",
        config={"in_channels": 4, "patch_size": 2, "dim": 32, "n_layers": 2}
        | {"n_refiner_layers": 1, "n_heads": 2, "cap_feat_dim": _TEXT_DIM}
        | {"injection_layer_ids": (1,), "perceiver_num_layers": 1, "min_num_gist_tokens": 5}
        | {"max_num_gist_tokens": 9, "gist_step": 2, "gist_min_text_len": 4}
        | {"gist_max_text_len": 20, "axes_dims": (4, 4, 8), "axes_lens": (32, 16, 16)},
        inputs=_fibo2,
        kinds=(
            (r"^noise_refiner\.\d+\.attention$", "spatial"),
            (r"^perceiver\..*_attention$", "other"),
            (r"^layers\.\d+\.attention$", "joint"),
            (r"^layers\.\d+\.cross_attention$", "cross"),
        ),
        modality="image",
        notes="learned queries gather the prompt into a few tokens beside the picture",
    ),
)
