"""Image models that attend within the picture and, where they take text, across to it."""

from __future__ import annotations

from typing import Any

import torch

from .draw import Draw, at
from .spec import Dit

_TEXT_DIM = 12
_WIDTH = {"attention_head_dim": 8, "num_attention_heads": 4}
_BASIC = _WIDTH | {"in_channels": 4, "num_layers": 2, "attention_bias": True}
_BOTH = ((r"blocks\.\d+\.attn1$", "spatial"), (r"blocks\.\d+\.attn2$", "cross"))


def _text(
    batch: int = 2,
    frames: int = 1,
    height: int = 8,
    width: int = 12,
    text: int = 7,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    *,
    channels: int = 4,
    timestep: float = 500,
) -> dict[str, Any]:
    del frames
    draw = Draw(seed, dtype)
    return {
        "hidden_states": draw(batch, channels, height, width),
        "encoder_hidden_states": draw(batch, text, _TEXT_DIM),
        "timestep": at(batch, timestep),
    }


def _classes(batch: int = 2, height: int = 8, width: int = 8, **rest: Any) -> dict[str, Any]:
    inputs = _text(batch, height=height, width=height, **rest)
    del inputs["encoder_hidden_states"]
    return inputs | {"class_labels": torch.arange(batch)}


def _pixart(batch: int = 2, text: int = 7, **rest: Any) -> dict[str, Any]:
    mask = torch.ones(batch, text)
    mask[-1, -1] = 0
    return _text(batch, text=text, **rest) | {
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "encoder_attention_mask": mask,
        "return_dict": False,
    }


def _sana(batch: int = 2, text: int = 7, **rest: Any) -> dict[str, Any]:
    mask = torch.ones(batch, text)
    mask[-1, -1] = 0
    return _text(batch, text=text, **rest) | {
        "encoder_attention_mask": mask,
        "guidance": at(batch, 0.4),
    }


def _continuous(**rest: Any) -> dict[str, Any]:
    return _text(channels=10, **rest) | {"timestep": torch.tensor(500), "return_dict": False}


def _hunyuan(
    batch: int = 2,
    height: int = 8,
    width: int = 12,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **rest: Any,
) -> dict[str, Any]:
    draw = Draw(seed + 1, dtype)
    inputs = _text(batch, height=height, width=width, seed=seed, dtype=dtype, **rest)
    angles = draw(height * width // 4, 8)
    mask = torch.ones(batch, 7)
    mask[-1, -1] = 0
    return inputs | {
        "timestep": at(batch, 500.0),
        "text_embedding_mask": mask,
        "encoder_hidden_states_t5": draw(batch, 5, 16),
        "text_embedding_mask_t5": torch.ones(batch, 5),
        "image_meta_size": torch.tensor([[64.0, 96, 64, 96, 0, 0]]).repeat(batch, 1),
        "style": torch.zeros(batch, dtype=torch.long),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


def _lumina(batch: int = 2, text: int = 7, seed: int = 0, **rest: Any) -> dict[str, Any]:
    angles = Draw(seed + 1, torch.float32)(16, 16, 4)
    mask = torch.ones(batch, text)
    mask[-1, -1] = 0
    return _text(batch, text=text, seed=seed, **rest) | {
        "timestep": at(batch, 0.5),
        "encoder_mask": mask,
        "image_rotary_emb": torch.polar(torch.ones_like(angles), angles),
        "cross_attention_kwargs": {},
    }


_PATCHES = _BASIC | {"sample_size": 12, "patch_size": 2, "norm_elementwise_affine": False}

DITS = (
    Dit(
        name="dit",
        cls="DiTTransformer2DModel",
        config=_PATCHES | {"sample_size": 8, "num_embeds_ada_norm": 1000},
        inputs=_classes,
        kinds=((r"blocks\.\d+\.attn1$", "spatial"),),
        modality="image",
        notes="no text: a class label; square pictures only",
    ),
    Dit(
        name="pixart",
        cls="PixArtTransformer2DModel",
        config=_PATCHES
        | {"out_channels": 8, "cross_attention_dim": 32, "caption_channels": _TEXT_DIM},
        inputs=_pixart,
        kinds=_BOTH,
        modality="image",
    ),
    Dit(
        name="transformer_2d",
        cls="Transformer2DModel",
        config=_PATCHES
        | {"cross_attention_dim": 32, "norm_type": "ada_norm_single"}
        | {"caption_channels": _TEXT_DIM},
        inputs=_pixart,
        kinds=_BOTH,
        modality="image",
        notes="as patches; the class also serves U-Nets",
    ),
    Dit(
        name="transformer_2d_continuous",
        cls="Transformer2DModel",
        config=_BASIC
        | {"in_channels": 10, "norm_num_groups": 5, "cross_attention_dim": _TEXT_DIM}
        | {"norm_type": "ada_norm", "num_embeds_ada_norm": 1000},
        inputs=_continuous,
        kinds=_BOTH,
        modality="image",
        notes="without patches, as in a U-Net",
    ),
    Dit(
        name="dreamlite",
        cls="DreamLiteTransformer2DModel",
        config=_BASIC
        | {"in_channels": 10, "norm_num_groups": 5, "cross_attention_dim": _TEXT_DIM}
        | {"norm_type": "ada_norm", "num_embeds_ada_norm": 1000, "qk_norm": "rms_norm"},
        inputs=_continuous,
        kinds=_BOTH,
        modality="image",
    ),
    Dit(
        name="sana",
        cls="SanaTransformer2DModel",
        config=_WIDTH
        | {"in_channels": 4, "out_channels": 4, "num_layers": 2, "sample_size": 12}
        | {"patch_size": 2, "num_cross_attention_heads": 2, "cross_attention_head_dim": 16}
        | {"cross_attention_dim": 32, "caption_channels": _TEXT_DIM, "guidance_embeds": True},
        inputs=_sana,
        kinds=_BOTH,
        modality="image",
        mechanism={"spatial": "linear"},
        notes="linear attention within the picture; convolutions in the MLP",
    ),
    Dit(
        name="hunyuan_dit",
        cls="HunyuanDiT2DModel",
        config=_WIDTH
        | {"in_channels": 4, "patch_size": 2, "sample_size": 12, "hidden_size": 32}
        | {"num_layers": 4, "cross_attention_dim": _TEXT_DIM, "cross_attention_dim_t5": 16}
        | {"pooled_projection_dim": 14, "text_len": 7, "text_len_t5": 5},
        inputs=_hunyuan,
        kinds=(*_BOTH, (r"pooler$", "other")),
        modality="image",
        notes="long skips between blocks; two prompts in one; text is pooled by attention",
    ),
    Dit(
        name="lumina_next",
        cls="LuminaNextDiT2DModel",
        config={"sample_size": 12, "patch_size": 2, "in_channels": 4, "hidden_size": 32}
        | {"num_layers": 2, "num_attention_heads": 4, "num_kv_heads": 2, "multiple_of": 10}
        | {"cross_attention_dim": _TEXT_DIM},
        inputs=_lumina,
        kinds=((r"^layers\.\d+\.attn1$", "spatial"), (r"^layers\.\d+\.attn2$", "cross")),
        modality="image",
        notes="both attentions side by side, added and projected once",
    ),
)
