"""Image models in which text and picture attend to one another in two streams, from a 2D grid."""

from __future__ import annotations

from typing import Any

import torch

from .draw import Draw, at
from .spec import Dit

_WIDTH = {"attention_head_dim": 8, "num_attention_heads": 4}
_TEXT_DIM = 12
_JOINT = ((r"blocks\.\d+\.attn1?$", "joint"),)


def _grid(
    batch: int = 2,
    frames: int = 1,
    height: int = 8,
    width: int = 12,
    text: int = 7,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    *,
    channels: int = 4,
) -> dict[str, Any]:
    del frames
    draw = Draw(seed, dtype)
    return {
        "hidden_states": draw(batch, channels, height, width),
        "encoder_hidden_states": draw(batch, text, _TEXT_DIM),
        "timestep": at(batch, 500.0),
    }


def _sd3(batch: int = 2, seed: int = 0, **rest: Any) -> dict[str, Any]:
    pooled = Draw(seed + 1, rest.get("dtype", torch.float32))(batch, 10)
    return _grid(batch, seed=seed, **rest) | {"pooled_projections": pooled}


def _auraflow(batch: int = 2, **rest: Any) -> dict[str, Any]:
    return _grid(batch, **rest) | {"timestep": at(batch, 0.5)}


def _cogview(batch: int = 2, height: int = 8, width: int = 12, **rest: Any) -> dict[str, Any]:
    size = torch.tensor([[8.0 * height, 8.0 * width]]).expand(batch, -1)
    return _grid(batch, height=height, width=width, **rest) | {
        "original_size": size,
        "target_size": size,
        "crop_coords": torch.zeros(batch, 2),
    }


def _cogview4(batch: int = 2, text: int = 7, **rest: Any) -> dict[str, Any]:
    mask = torch.ones(batch, text)
    mask[-1, -1] = 0
    return _cogview(batch, text=text, **rest) | {"attention_mask": mask}


def _glm(
    batch: int = 2, height: int = 8, width: int = 12, seed: int = 0, **rest: Any
) -> dict[str, Any]:
    inputs = _cogview(batch, height=height, width=width, seed=seed, **rest)
    del inputs["original_size"]
    tokens = Draw(seed + 1, torch.float32).integers(20, batch, height * width // 4)
    dropped = torch.arange(batch) == batch - 1
    return inputs | {"prior_token_id": tokens, "prior_token_drop": dropped}


def _hunyuan(
    batch: int = 2, height: int = 4, width: int = 6, text: int = 7, **rest: Any
) -> dict[str, Any]:
    mask = torch.ones(batch, text)
    mask[-1, -1] = 0
    inputs = _grid(batch, height=height, width=width, text=text, **rest)
    return inputs | {"encoder_attention_mask": mask, "guidance": at(batch, 3500.0)}


def _hunyuan_glyphs(batch: int = 2, seed: int = 0, **rest: Any) -> dict[str, Any]:
    glyphs = Draw(seed + 1, rest.get("dtype", torch.float32))(batch, 5, 14)
    mask = torch.ones(batch, 5)
    mask[-1, -1] = 0
    return _hunyuan(batch, seed=seed, **rest) | {
        "encoder_hidden_states_2": glyphs,
        "encoder_attention_mask_2": mask,
    }


def _hidream(
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
        "timesteps": at(batch, 500.0),
        "encoder_hidden_states_t5": draw(batch, 5, 10),
        "encoder_hidden_states_llama3": draw(3, batch, text, 14),
        "pooled_embeds": draw(batch, 18),
    }


def _packed(
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
    return {
        "hidden_states": draw(batch, height * width, 4),
        "encoder_hidden_states": draw(batch, text, _TEXT_DIM),
        "encoder_hidden_states_mask": mask,
        "timestep": at(batch, 0.5),
        "img_shapes": [[(1, height, width)]] * batch,
    }


def _nucleus(
    height: int = 4, width: int = 6, dtype: torch.dtype = torch.bfloat16, **rest: Any
) -> dict[str, Any]:
    inputs = _packed(height=height, width=width, dtype=dtype, **rest)
    return inputs | {"img_shapes": [(1, height, width)]}


def _nucleus_loop(**rest: Any) -> dict[str, Any]:
    return _nucleus(dtype=torch.float32, **rest)


def _qwen21(
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
    num_slots = height * width // 4
    mask = torch.arange(text + num_slots) >= text
    return {
        "hidden_states": draw(batch, height * width, 4),
        "encoder_hidden_states": draw(batch, text, _TEXT_DIM),
        "timestep": at(1, 0.5),
        "img_shapes": [[(1, height, width)]] * batch,
        "img_mask": mask.expand(batch, -1),
    }


def _prx(batch: int = 2, text: int = 7, **rest: Any) -> dict[str, Any]:
    mask = torch.ones(batch, text, dtype=torch.bool)
    mask[-1, -1] = False
    return _grid(batch, text=text, **rest) | {"timestep": at(batch, 0.5), "attention_mask": mask}


_SD3 = (
    _WIDTH
    | {"sample_size": 12, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2}
    | {"joint_attention_dim": _TEXT_DIM, "caption_projection_dim": 32}
    | {"pooled_projection_dim": 10, "pos_embed_max_size": 16}
)
_COGVIEW = (
    _WIDTH
    | {"patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2}
    | {"text_embed_dim": _TEXT_DIM, "time_embed_dim": 18, "condition_dim": 10}
)
_HUNYUAN = (
    _WIDTH
    | {"in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 2}
    | {"num_refiner_layers": 1, "text_embed_dim": _TEXT_DIM, "guidance_embeds": True}
    | {"rope_axes_dim": (4, 4)}
)
_NUCLEUS = (
    _WIDTH
    | {"patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 5}
    | {"joint_attention_dim": _TEXT_DIM, "axes_dims_rope": (2, 2, 4), "num_experts": 3}
    | {"num_key_value_heads": 2, "moe_intermediate_dim": 24, "capacity_factors": 1.0}
    | {"mlp_ratio": 8.0}
)
_REFINED = ((r"^context_embedder\..*\.attn$", "text"), *_JOINT)

DITS = (
    Dit(
        name="sd3",
        cls="SD3Transformer2DModel",
        config=_SD3,
        inputs=_sd3,
        kinds=_JOINT,
        modality="image",
        notes="the last block drops the text's output",
    ),
    Dit(
        name="sd35",
        cls="SD3Transformer2DModel",
        config=_SD3 | {"dual_attention_layers": (0,), "qk_norm": "rms_norm"},
        inputs=_sd3,
        kinds=(*_JOINT, (r"blocks\.0\.attn2$", "spatial")),
        modality="image",
        notes="a second attention over the picture alone in the first block",
    ),
    Dit(
        name="auraflow",
        cls="AuraFlowTransformer2DModel",
        config=_WIDTH
        | {"sample_size": 12, "patch_size": 2, "in_channels": 4, "out_channels": 4}
        | {"num_mmdit_layers": 2, "num_single_dit_layers": 2, "joint_attention_dim": _TEXT_DIM}
        | {"caption_projection_dim": 32, "pos_embed_max_size": 256},
        inputs=_auraflow,
        kinds=_JOINT,
        modality="image",
        notes="learned register tokens lead the text; one residual around attention and MLP",
    ),
    Dit(
        name="cogview3plus",
        cls="CogView3PlusTransformer2DModel",
        config=_COGVIEW | {"sample_size": 12, "pos_embed_max_size": 12},
        inputs=_cogview,
        kinds=_JOINT,
        modality="image",
    ),
    Dit(
        name="cogview4",
        cls="CogView4Transformer2DModel",
        config=_COGVIEW | {"sample_size": 12, "rope_axes_dim": (16, 16)},
        inputs=_cogview4,
        kinds=_JOINT,
        modality="image",
        notes="rotates queries and keys in place; masks text by an outer product",
    ),
    Dit(
        name="glm_image",
        cls="GlmImageTransformer2DModel",
        config=_COGVIEW | {"prior_vq_quantizer_codebook_size": 20},
        inputs=_glm,
        kinds=_JOINT,
        modality="image",
        notes="adds embeddings of prior tokens to the picture; writes to what it looked up",
        graphs=2,
    ),
    Dit(
        name="hunyuan_image",
        cls="HunyuanImageTransformer2DModel",
        config=_HUNYUAN,
        inputs=_hunyuan,
        kinds=_REFINED,
        modality="image",
        notes="the text refiner reads the timestep",
    ),
    Dit(
        name="hunyuan_image_glyphs",
        cls="HunyuanImageTransformer2DModel",
        config=_HUNYUAN | {"text_embed_2_dim": 14},
        inputs=_hunyuan_glyphs,
        kinds=_REFINED,
        modality="image",
        notes="sorts two prompts by their masks, sample by sample; the refiner of the first is a "
        "graph of its own, without latents: computed at every step",
        graphs=10,
        unseen=r"^context_embedder",
        computed="found no latents",
    ),
    Dit(
        name="hidream",
        cls="HiDreamImageTransformer2DModel",
        config=_WIDTH
        | {"patch_size": 2, "in_channels": 4, "out_channels": 4}
        | {"num_layers": 1, "num_single_layers": 1, "caption_channels": [10, 14]}
        | {"text_emb_dim": 18, "num_routed_experts": 3, "num_activated_experts": 2}
        | {"axes_dims_rope": (4, 2, 2), "max_resolution": (12, 12), "llama_layers": [0, 2]},
        inputs=_hidream,
        kinds=((r"blocks\.\d+\.block\.attn1$", "joint"),),
        modality="image",
        clock="timesteps",
        notes="mixture of experts that counts tokens on the host: each is kept whole, as one op; "
        "reads its sizes from tensors: needs one compilation per size",
        switches={"automatic_dynamic_shapes": False},
    ),
    Dit(
        name="qwen_image",
        cls="QwenImageTransformer2DModel",
        config=_WIDTH
        | {"patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 2}
        | {"joint_attention_dim": _TEXT_DIM, "axes_dims_rope": (2, 2, 4)},
        inputs=_packed,
        kinds=_JOINT,
        modality="image",
    ),
    Dit(
        name="qwen_image_21",
        cls="QwenImage21Transformer2DModel",
        config=_WIDTH
        | {"in_channels": 4, "out_channels": 4, "num_layers": 2, "context_in_dim": _TEXT_DIM}
        | {"axes_dims_rope": (2, 2, 4)},
        inputs=_qwen21,
        kinds=_JOINT,
        modality="image",
        notes="causal over text, one attention call per segment",
        graphs=9,
    ),
    Dit(
        name="nucleus",
        cls="NucleusMoEImageTransformer2DModel",
        config=_NUCLEUS | {"use_grouped_mm": True},
        inputs=_nucleus,
        kinds=_JOINT,
        modality="image",
        notes="queries of the picture only, keys of both; experts choose their tokens; bfloat16",
        dtype=torch.bfloat16,
    ),
    Dit(
        name="nucleus_loop",
        cls="NucleusMoEImageTransformer2DModel",
        config=_NUCLEUS,
        inputs=_nucleus_loop,
        kinds=_JOINT,
        modality="image",
        notes="experts choose their tokens, and run in a loop over counts that a tensor holds",
    ),
    Dit(
        name="prx",
        cls="PRXTransformer2DModel",
        config={"in_channels": 4, "patch_size": 2, "context_in_dim": _TEXT_DIM}
        | {"hidden_size": 32, "num_heads": 4, "depth": 2, "axes_dim": [4, 4]},
        inputs=_prx,
        kinds=((r"^blocks\.\d+\.attention$", "joint"),),
        modality="image",
        notes="queries of the picture only, keys of both",
    ),
)
