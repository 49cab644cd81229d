"""Image models whose latents come as packed tokens, with text beside them: the Flux family."""

from __future__ import annotations

from typing import Any

import torch

from .draw import Draw, at, grid_ids
from .spec import Dit

_WIDTH = {"attention_head_dim": 16, "num_attention_heads": 2}
_STREAMS = {"num_layers": 2, "num_single_layers": 2}
_ROPE = {"axes_dims_rope": (4, 4, 8)}
_TEXT_DIM = 12
_POOLED_DIM = 10
_JOINT = ((r"transformer_blocks\.\d+\.attn$", "joint"),)


def _tokens(
    batch: int = 2,
    frames: int = 1,
    height: int = 4,
    width: int = 6,
    text: int = 7,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    *,
    channels: int = 4,
    num_axes: int = 3,
) -> dict[str, Any]:
    del frames
    draw = Draw(seed, dtype)
    return {
        "hidden_states": draw(batch, height * width, channels),
        "encoder_hidden_states": draw(batch, text, _TEXT_DIM),
        "timestep": at(batch, 0.5),
        "img_ids": grid_ids(height, width, num_axes),
        "txt_ids": torch.zeros(text, num_axes),
    }


def _flux(batch: int = 2, seed: int = 0, **sizes: Any) -> dict[str, Any]:
    pooled = Draw(seed + 1, sizes.get("dtype", torch.float32))(batch, _POOLED_DIM)
    return _tokens(batch, seed=seed, **sizes) | {
        "pooled_projections": pooled,
        "guidance": at(batch, 3.5),
    }


def _chroma(batch: int = 2, height: int = 4, width: int = 6, text: int = 7, **rest: Any) -> Any:
    mask = torch.ones(batch, text + height * width, dtype=rest.get("dtype", torch.float32))
    mask[-1, text - 1] = 0
    inputs = _tokens(batch, height=height, width=width, text=text, **rest)
    return inputs | {"attention_mask": mask}


def _bria_fibo(batch: int = 2, text: int = 7, seed: int = 0, **rest: Any) -> dict[str, Any]:
    draw = Draw(seed + 1, rest.get("dtype", torch.float32))
    layers = [draw(batch, text, 14) for _ in range(4)]
    inputs = _tokens(batch, text=text, seed=seed, **rest)
    return inputs | {"timestep": at(batch, 500.0), "text_encoder_layers": layers}


def _bria(batch: int = 2, **rest: Any) -> dict[str, Any]:
    return _tokens(batch, **rest) | {"timestep": at(batch, 500.0)}


def _flux2(batch: int = 2, **rest: Any) -> dict[str, Any]:
    return _tokens(batch, num_axes=4, **rest) | {"guidance": at(batch, 3.5)}


def _flux3(batch: int = 2, **rest: Any) -> dict[str, Any]:
    return _tokens(batch, num_axes=4, **rest)


def _flux3_condition(batch: int = 2, seed: int = 0, **rest: Any) -> dict[str, Any]:
    picture = Draw(seed + 1, rest.get("dtype", torch.float32))(batch, 15, 6)
    return _flux3(batch, seed=seed, **rest) | {
        "image_cond_hidden_states": picture,
        "image_cond_ids": grid_ids(3, 5, 4),
    }


def _krea(
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
    mask = torch.ones(batch, text, dtype=torch.bool)
    mask[-1, -1] = False
    positions = torch.cat([torch.zeros(text, 3), grid_ids(height, width, 3)])
    return {
        "hidden_states": draw(batch, height * width, 4),
        "encoder_hidden_states": draw(batch, text, 3, 16),
        "timestep": at(batch, 0.5),
        "position_ids": positions,
        "encoder_attention_mask": mask,
    }


def _ideogram(
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
    num_tokens = text + height * width
    is_text = (torch.arange(num_tokens) < text).expand(batch, -1)
    positions = torch.cat([torch.zeros(text, 3), grid_ids(height, width, 3)])
    return {
        "hidden_states": draw(batch, num_tokens, 4),
        "encoder_hidden_states": draw(batch, num_tokens, 12),
        "timestep": at(batch, 0.5),
        "position_ids": positions.expand(batch, -1, -1),
        "segment_ids": torch.zeros(batch, num_tokens, dtype=torch.long),
        "indicator": torch.where(is_text, 3, 2),
    }


DITS = (
    Dit(
        name="flux",
        cls="FluxTransformer2DModel",
        config=_WIDTH
        | _STREAMS
        | _ROPE
        | {"in_channels": 4, "joint_attention_dim": _TEXT_DIM, "guidance_embeds": True}
        | {"pooled_projection_dim": _POOLED_DIM},
        inputs=_flux,
        kinds=_JOINT,
        modality="image",
        notes="single blocks project attention and MLP together",
    ),
    Dit(
        name="chroma",
        cls="ChromaTransformer2DModel",
        config=_WIDTH
        | _STREAMS
        | _ROPE
        | {"in_channels": 4, "joint_attention_dim": _TEXT_DIM, "approximator_layers": 2}
        | {"approximator_num_channels": 16, "approximator_hidden_dim": 20},
        inputs=_chroma,
        kinds=_JOINT,
        modality="image",
        notes="masked; the modulation of every block comes from one network",
    ),
    Dit(
        name="bria",
        cls="BriaTransformer2DModel",
        config=_WIDTH | _STREAMS | _ROPE | {"in_channels": 4, "joint_attention_dim": _TEXT_DIM},
        inputs=_bria,
        kinds=_JOINT,
        modality="image",
    ),
    Dit(
        name="bria_fibo",
        cls="BriaFiboTransformer2DModel",
        config=_WIDTH
        | _STREAMS
        | _ROPE
        | {"in_channels": 4, "joint_attention_dim": _TEXT_DIM, "text_encoder_dim": 14},
        inputs=_bria_fibo,
        kinds=_JOINT,
        modality="image",
        notes="every block replaces half of the text's channels by another layer's embeddings",
    ),
    Dit(
        name="ovis_image",
        cls="OvisImageTransformer2DModel",
        config=_WIDTH
        | _STREAMS
        | _ROPE
        | {"in_channels": 4, "out_channels": 4, "joint_attention_dim": _TEXT_DIM},
        inputs=_tokens,
        kinds=_JOINT,
        modality="image",
    ),
    Dit(
        name="longcat_image",
        cls="LongCatImageTransformer2DModel",
        config=_WIDTH | _STREAMS | _ROPE | {"in_channels": 4, "joint_attention_dim": _TEXT_DIM},
        inputs=_tokens,
        kinds=_JOINT,
        modality="image",
    ),
    Dit(
        name="flux2",
        cls="Flux2Transformer2DModel",
        config=_WIDTH
        | _STREAMS
        | {"in_channels": 4, "joint_attention_dim": _TEXT_DIM, "axes_dims_rope": (4, 4, 4, 4)}
        | {"timestep_guidance_channels": 18},
        inputs=_flux2,
        kinds=_JOINT,
        modality="image",
        fused=r"^single_transformer_blocks",
        notes="single blocks project queries, keys, values and the MLP at once",
    ),
    Dit(
        name="flux3",
        cls="Flux3Transformer2DModel",
        config=_WIDTH
        | _STREAMS
        | {"in_channels": 4, "cond_in_channels": 6, "joint_attention_dim": _TEXT_DIM}
        | {"axes_dims_rope": (4, 4, 4, 4), "timestep_channels": 18},
        inputs=_flux3,
        kinds=(
            (r"^txt_mode_blocks\.\d+\.attn$", "text"),
            (r"^mode_blocks\.image\.\d+\.attn$", "full"),
            (r"^single_transformer_blocks\.\d+\.attn$", "joint"),
        ),
        modality="image",
        notes="attention and MLP run side by side and are added before the gate",
    ),
    Dit(
        name="flux3_condition",
        cls="Flux3Transformer2DModel",
        config=_WIDTH
        | _STREAMS
        | {"in_channels": 4, "cond_in_channels": 6, "joint_attention_dim": _TEXT_DIM}
        | {"axes_dims_rope": (4, 4, 4, 4), "timestep_channels": 18},
        inputs=_flux3_condition,
        kinds=(
            (r"^txt_mode_blocks\.\d+\.attn$", "text"),
            (r"^mode_blocks\.image\.\d+\.attn$", "full"),
            (r"^mode_blocks\.image_cond\.\d+\.attn$", "other"),
            (r"^single_transformer_blocks\.\d+\.attn$", "joint"),
        ),
        modality="image",
        notes="with a reference picture, whose own attention does not read the latents",
    ),
    Dit(
        name="krea2",
        cls="Krea2Transformer2DModel",
        config=_WIDTH
        | _ROPE
        | {"in_channels": 4, "num_layers": 2, "num_key_value_heads": 1, "intermediate_size": 20}
        | {"timestep_embed_dim": 18, "text_hidden_dim": 16, "num_text_layers": 3}
        | {"text_num_attention_heads": 2, "text_num_key_value_heads": 2}
        | {"text_intermediate_size": 22, "num_layerwise_text_blocks": 1}
        | {"num_refiner_text_blocks": 1},
        inputs=_krea,
        kinds=((r"^text_fusion\..*\.attn$", "text"), (r"^transformer_blocks\.\d+\.attn$", "joint")),
        modality="image",
        notes="prompt embeddings of several layers, mixed by attention over the layers first",
    ),
    Dit(
        name="ideogram4",
        cls="Ideogram4Transformer2DModel",
        config=_WIDTH
        | {"in_channels": 4, "num_layers": 2, "intermediate_size": 20, "adaln_dim": 18}
        | {"llm_features_dim": 12, "mrope_section": (2, 2, 2)},
        inputs=_ideogram,
        kinds=((r"^layers\.\d+\.attention$", "full"),),
        modality="image",
        notes="text and picture share one axis from the start (both inputs are that long)",
    ),
)
