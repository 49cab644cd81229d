"""Video models with a memory of earlier frames, a camera, or several modalities in one sequence."""

from __future__ import annotations

from typing import Any

import torch

from .spec import Dit, Sizes, inputs_of


def _sana_wm(sizes: Sizes) -> dict[str, Any]:
    return {
        "hidden_states": sizes.noise(sizes.batch, 4, sizes.frames, sizes.height, sizes.width),
        "timestep": torch.full((sizes.batch, 1, sizes.frames), 500),
        "encoder_hidden_states": sizes.noise(sizes.batch, sizes.text, 14),
        "encoder_attention_mask": torch.ones(sizes.batch, sizes.text),
    }


def _anyflow_far(sizes: Sizes) -> dict[str, Any]:
    tokens = sizes.height * sizes.width // 4

    def cache(name: str, count: int, salt: int) -> dict[str, torch.Tensor]:
        return {name: sizes.noise(2, sizes.batch, 2, count, 12, salt=salt)}

    times = torch.full((sizes.batch, sizes.frames), 500.0)
    return {
        "hidden_states": sizes.noise(sizes.batch, sizes.frames, 4, sizes.height, sizes.width),
        "timestep": times,
        "r_timestep": 0.8 * times,
        "encoder_hidden_states": sizes.noise(sizes.batch, sizes.text, 20),
        "chunk_partition": [1, sizes.frames],
        "kv_cache": {
            layer: {
                **cache("full_cache", tokens, 1 + layer),
                **cache("compressed_cache", tokens // 4, 3 + layer),
            }
            for layer in range(2)
        },
        "kv_cache_flag": {
            "num_cached_chunks": 1,
            "is_cache_step": False,
            # What the model writes here itself; new keys would make Dynamo look again.
            "num_cached_full_tokens": tokens,
            "num_cached_compressed_tokens": 0,
        },
    }


def _kandinsky6_sr(sizes: Sizes) -> dict[str, Any]:
    shape = (sizes.batch, sizes.frames, sizes.height, sizes.width, 9)
    return {"hidden_states": sizes.noise(*shape), "timestep": sizes.timestep(500.0)}


def _cosmos3(sizes: Sizes) -> dict[str, Any]:
    video = sizes.frames * sizes.height * sizes.width // 4
    total = sizes.text + video
    where = torch.arange(sizes.text, total)
    latents = sizes.noise(1, 4, sizes.frames, sizes.height, sizes.width)
    return {
        "input_ids": torch.arange(sizes.text),
        "text_indexes": torch.arange(sizes.text),
        "position_ids": torch.arange(total).expand(3, -1),
        "und_len": sizes.text,
        "sequence_length": total,
        "vision_tokens": [latents],
        "vision_token_shapes": [(sizes.frames, sizes.height // 2, sizes.width // 2)],
        "vision_sequence_indexes": where,
        "vision_mse_loss_indexes": where,
        "vision_timesteps": torch.full((video,), 500.0),
        "vision_noisy_frame_indexes": [torch.arange(sizes.frames)],
    }


DITS = (
    Dit(
        "sana_wm",
        "SanaWMTransformer3DModel",
        {
            "in_channels": 4,
            "num_layers": 2,
            "hidden_size": 24,
            "num_attention_heads": 3,
            "patch_size": (1, 2, 2),
            "softmax_every_n": 2,
            "linear_head_dim": 12,
            "caption_channels": 14,
            "chunk_plucker_channels": 6,
        },
        inputs_of(_sana_wm),
        ((r"^blocks\.\d+\.attn$", "full"), (r"^blocks\.\d+\.cross_attn$", "cross")),
        "video",
        notes="every other self-attention is a gated delta rule over frames: not recognised "
        "as attention; `linear3` reuses its residual branch",
        unseen=r"^blocks\.0\.attn$",
    ),
    Dit(
        "anyflow_far",
        "AnyFlowFARTransformer3DModel",
        {
            "patch_size": (1, 2, 2),
            "compressed_patch_size": (1, 4, 4),
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 20,
            "freq_dim": 32,
            "ffn_dim": 40,
            "num_layers": 2,
            "rope_max_seq_len": 32,
        },
        inputs_of(_anyflow_far),
        ((r"^blocks\.\d+\.attn1$", "full"), (r"^blocks\.\d+\.attn2$", "cross")),
        "video",
        notes="flex attention to earlier frames too, whose keys come from a cache that is an input",
    ),
    Dit(
        "kandinsky6_sr",
        "Kandinsky6SRTransformer3DModel",
        {
            "in_visual_dim": 4,
            "out_visual_dim": 5,
            "time_dim": 18,
            "model_dim": 32,
            "ff_dim": 40,
            "num_visual_blocks": 2,
            "axes_dims": (4, 4, 8),
        },
        inputs_of(_kandinsky6_sr, height=8, width=16),
        ((r"^visual_transformer_blocks\.\d+\.self_attention$", "full"),),
        "video",
        notes="flex attention under a mask that vmap makes of queries and keys",
        sizes={"height": 16, "width": 8},
    ),
    Dit(
        "cosmos3",
        "Cosmos3OmniTransformer",
        {
            "head_dim": 12,
            "hidden_size": 24,
            "intermediate_size": 40,
            "latent_channel": 4,
            "patch_latent_dim": 16,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "num_key_value_heads": 1,
            "vocab_size": 50,
            "rope_axes_dim": (2, 2, 2),
        },
        inputs_of(_cosmos3),
        ((r"^layers\.\d+\.self_attn$", "joint"),),
        "video",
        notes="prompt and video in one sequence, each with weights of its own, at positions that "
        "are inputs: the prompt's own attention is not distinguished from the video's, two sites "
        "per layer",
        streams=2,
        clock="vision_timesteps",
        latents="vision_tokens",
    ),
)
