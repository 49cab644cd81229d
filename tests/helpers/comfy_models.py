"""Tiny configurations of ComfyUI's models: its own classes at sizes that a CPU runs in a second.

Each is the configuration that ComfyUI reads from a checkpoint, with fewer and narrower blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TEXT = 16
"""Channels of all prompts."""


@dataclass(frozen=True)
class Tiny:
    """How a tiny model is made and called.

    Args:
        config: the class of ``comfy.supported_models``.
        latents: the shape of the latents, with the batch.
        unet: the arguments of the module.
        pooled: channels of the pooled prompt, or None.
        has_mask: whether a prompt has an attention mask.
        text: channels of the prompt.
        extras: further entries of a prompt: shapes, or values.
    """

    config: str
    latents: tuple[int, ...]
    unet: dict[str, Any]
    pooled: int | None = None
    has_mask: bool = False
    text: int = TEXT
    extras: dict[str, Any] = field(default_factory=dict)


_PICTURE = (1, 16, 8, 8)
_VIDEO = (1, 16, 2, 8, 8)
_FLUX: dict[str, Any] = {
    "in_channels": 16,
    "patch_size": 2,
    "out_channels": 16,
    "vec_in_dim": 8,
    "context_in_dim": TEXT,
    "hidden_size": 48,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 2,
    "axes_dim": [8, 8, 8],
    "theta": 10000,
    "qkv_bias": True,
}
_CHROMA = {key: value for key, value in _FLUX.items() if key != "vec_in_dim"} | {
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": 48,
    "hidden_dim": 32,
    "n_layers": 1,
}
_HUNYUAN = _FLUX | {
    "image_model": "hunyuan_video",
    "patch_size": [1, 2, 2],
    "theta": 256,
    "guidance_embed": True,
    "byt5": False,
    "meanflow": False,
}
_WAN: dict[str, Any] = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "in_dim": 16,
    "dim": 48,
    "out_dim": 16,
    "ffn_dim": 96,
    "freq_dim": 32,
    "text_dim": TEXT,
    "num_heads": 2,
    "num_layers": 2,
}
_COSMOS: dict[str, Any] = {
    "max_img_h": 32,
    "max_img_w": 32,
    "max_frames": 16,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 48,
    "concat_padding_mask": True,
    "crossattn_emb_channels": TEXT,
    "pos_emb_cls": "rope3d",
    "pos_emb_interpolation": "crop",
    "use_adaln_lora": True,
    "adaln_lora_dim": 8,
    "num_blocks": 2,
    "num_heads": 2,
    "rope_h_extrapolation_ratio": 1.0,
    "rope_w_extrapolation_ratio": 1.0,
    "rope_t_extrapolation_ratio": 2.0,
    "extra_h_extrapolation_ratio": 1.0,
    "extra_w_extrapolation_ratio": 1.0,
    "extra_t_extrapolation_ratio": 1.0,
}
_UNET: dict[str, Any] = {
    "image_size": 8,
    "use_spatial_transformer": True,
    "legacy": False,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "context_dim": TEXT,
    "num_heads": 2,
    "num_head_channels": -1,
    "use_temporal_attention": False,
}

MODELS: dict[str, Tiny] = {
    "Wan 2.1": Tiny("WAN21_T2V", _VIDEO, _WAN),
    "Wan 2.1 image to video": Tiny("WAN21_I2V", _VIDEO, _WAN | {"model_type": "i2v", "in_dim": 36}),
    "Wan 2.1 VACE": Tiny(
        "WAN21_Vace",
        _VIDEO,
        _WAN | {"model_type": "vace", "vace_layers": 1, "vace_in_dim": 96},
    ),
    "Wan 2.2": Tiny("WAN22_T2V", (1, 48, 2, 8, 8), _WAN | {"in_dim": 48, "out_dim": 48}),
    "Flux": Tiny(
        "Flux", _PICTURE, _FLUX | {"image_model": "flux", "guidance_embed": True}, pooled=8
    ),
    "Flux schnell": Tiny(
        "FluxSchnell", _PICTURE, _FLUX | {"image_model": "flux", "guidance_embed": False}, pooled=8
    ),
    "Chroma": Tiny("Chroma", _PICTURE, _CHROMA | {"image_model": "chroma"}),
    "Chroma Radiance": Tiny(
        "ChromaRadiance",
        (1, 3, 32, 32),
        _CHROMA
        | {
            "image_model": "chroma_radiance",
            "in_channels": 3,
            "out_channels": 3,
            "patch_size": 16,
            "nerf_hidden_size": 8,
            "nerf_mlp_ratio": 2,
            "nerf_depth": 1,
            "nerf_max_freqs": 4,
            "nerf_tile_size": 0,
            "nerf_final_head_type": "conv",
            "nerf_embedder_dtype": None,
        },
    ),
    "HunyuanVideo": Tiny("HunyuanVideo", _VIDEO, _HUNYUAN, pooled=8),
    "HunyuanImage 2.1": Tiny(
        "HunyuanImage21",
        (1, 64, 8, 8),
        _HUNYUAN
        | {
            "in_channels": 64,
            "out_channels": 64,
            "patch_size": [1, 1],
            "vec_in_dim": None,
            "axes_dim": [12, 12],
            "guidance_embed": False,
        },
        has_mask=True,
    ),
    "LTX Video": Tiny(
        "LTXV",
        (1, 128, 2, 4, 4),
        {
            "image_model": "ltxv",
            "num_layers": 2,
            "attention_head_dim": 24,
            "num_attention_heads": 2,
            "cross_attention_dim": 48,
            "caption_channels": TEXT,
        },
        has_mask=True,
    ),
    "Qwen-Image": Tiny(
        "QwenImage",
        (1, 16, 1, 8, 8),
        {
            "image_model": "qwen_image",
            "in_channels": 64,
            "num_layers": 2,
            "attention_head_dim": 24,
            "num_attention_heads": 2,
            "joint_attention_dim": TEXT,
            "axes_dims_rope": (8, 8, 8),
        },
    ),
    "Stable Diffusion 3": Tiny(
        "SD3",
        _PICTURE,
        {
            "in_channels": 16,
            "patch_size": 2,
            "out_channels": 16,
            "depth": 2,
            "input_size": None,
            "adm_in_channels": 8,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": TEXT, "out_features": 128},
            },
            "num_patches": 64,
            "pos_embed_max_size": 8,
            "qk_norm": "rms",
            "pos_embed_scaling_factor": None,
            "x_block_self_attn_layers": [0],
        },
        pooled=8,
    ),
    "Lumina 2": Tiny(
        "Lumina2",
        _PICTURE,
        {
            "image_model": "lumina2",
            "patch_size": 2,
            "in_channels": 16,
            "dim": 48,
            "cap_feat_dim": TEXT,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 1,
            "multiple_of": 16,
            "qk_norm": True,
            "axes_dims": [8, 8, 8],
            "axes_lens": [64, 64, 64],
        },
        has_mask=True,
    ),
    "Cosmos": Tiny(
        "CosmosT2V",
        _VIDEO,
        _COSMOS
        | {
            "image_model": "cosmos",
            "block_config": "FA-CA-MLP",
            "block_x_format": "THWBD",
            "affline_emb_norm": True,
            "pos_emb_learnable": False,
            "extra_per_block_abs_pos_emb": True,
            "extra_per_block_abs_pos_emb_type": "learnable",
        },
    ),
    "Cosmos Predict 2": Tiny(
        "CosmosT2IPredict2",
        _VIDEO,
        _COSMOS
        | {
            "image_model": "cosmos_predict2",
            "pos_emb_learnable": True,
            "extra_per_block_abs_pos_emb": False,
            "min_fps": 1,
            "max_fps": 30,
            "rope_enable_fps_modulation": False,
        },
    ),
    "Mochi": Tiny(
        "GenmoMochi",
        (1, 12, 2, 8, 8),
        {
            "image_model": "mochi_preview",
            "depth": 2,
            "patch_size": 2,
            "num_heads": 2,
            "hidden_size_x": 48,
            "hidden_size_y": 32,
            "mlp_ratio_x": 256.0,  # its class takes one width of MLPs only
            "mlp_ratio_y": 2.0,
            "learn_sigma": False,
            "in_channels": 12,
            "qk_norm": True,
            "qkv_bias": False,
            "out_bias": True,
            "attn_drop": 0.0,
            "posenc_preserve_area": True,
            "attend_to_padding": False,
            "timestep_scale": 1000.0,
            "use_t5": True,
            "t5_feat_dim": TEXT,
            "t5_token_length": 6,
        },
        has_mask=True,
    ),
    "HiDream": Tiny(
        "HiDream",
        _PICTURE,
        {
            "image_model": "hidream",
            "attention_head_dim": 24,
            "axes_dims_rope": [8, 8, 8],
            "caption_channels": [TEXT, TEXT],
            "max_resolution": [16, 16],
            "in_channels": 16,
            "llama_layers": [0, 1, 1],
            "num_attention_heads": 2,
            "num_routed_experts": 2,
            "num_activated_experts": 1,
            "num_layers": 1,
            "num_single_layers": 1,
            "out_channels": 16,
            "patch_size": 2,
            "text_emb_dim": 8,
        },
        pooled=8,
        extras={"conditioning_llama3": (1, 2, 6, TEXT)},
    ),
    "OmniGen 2": Tiny(
        "Omnigen2",
        _PICTURE,
        {
            "image_model": "omnigen2",
            "axes_dim_rope": [8, 8, 8],
            "axes_lens": [64, 64, 64],
            "hidden_size": 48,
            "in_channels": 16,
            "multiple_of": 16,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "patch_size": 2,
            "text_feat_dim": TEXT,
            "timestep_scale": 1000.0,
        },
        has_mask=True,
    ),
    "AuraFlow": Tiny(
        "AuraFlow",
        (1, 4, 8, 8),
        {
            "cond_seq_dim": TEXT,
            "max_seq": 64,
            "dim": 48,
            "n_heads": 2,
            "n_double_layers": 1,
            "n_layers": 2,
            "global_conddim": 48,
        },
    ),
    "PixArt alpha": Tiny(
        "PixArtAlpha",
        (1, 4, 40, 40),
        {
            "image_model": "pixart_alpha",
            "num_heads": 2,
            "patch_size": 2,
            "hidden_size": 48,
            "in_channels": 4,
            "depth": 2,
            "model_max_length": 6,
            "input_size": 8,
            "pe_interpolation": 1,
            "micro_condition": True,
            "caption_channels": TEXT,
        },
    ),
    "Hunyuan-DiT": Tiny(
        "HunyuanDiT",
        (1, 4, 8, 8),
        {
            "image_model": "hydit",
            "depth": 2,
            "hidden_size": 48,
            "num_heads": 2,
            "text_states_dim": TEXT,
            "text_states_dim_t5": TEXT,
            "text_len": 6,
            "text_len_t5": 6,
        },
        has_mask=True,
        extras={
            "conditioning_mt5xl": (1, 6, TEXT),
            "attention_mask_mt5xl": "ones",
        },
    ),
    "ACE-Step": Tiny(
        "ACEStep",
        (1, 8, 16, 8),
        {
            "audio_model": "ace",
            "attention_head_dim": 24,
            "in_channels": 8,
            "inner_dim": 48,
            "max_height": 16,
            "max_position": 64,
            "max_width": 64,
            "mlp_ratio": 2.0,
            "num_attention_heads": 2,
            "num_layers": 2,
            "out_channels": 8,
            "patch_size": [16, 1],
            "rope_theta": 10000.0,
            "speaker_embedding_dim": 512,
            "text_embedding_dim": TEXT,
            "ssl_encoder_depths": [1, 1],
            "ssl_latent_dims": [16, 16],
            "ssl_names": ["a", "b"],
            "lyric_encoder_vocab_size": 32,
            "lyric_hidden_size": 1024,
        },
        extras={"conditioning_lyrics": "tokens"},
    ),
    "Hunyuan3D 2": Tiny(
        "Hunyuan3Dv2",
        (1, 64, 24),
        {
            "image_model": "hunyuan3d2",
            "in_channels": 64,
            "context_in_dim": TEXT,
            "hidden_size": 48,
            "mlp_ratio": 2.0,
            "num_heads": 2,
            "depth": 1,
            "depth_single_blocks": 1,
            "qkv_bias": True,
            "guidance_embed": False,
        },
    ),
    "Stable Diffusion 1.5": Tiny("SD15", (1, 4, 8, 8), _UNET | {"adm_in_channels": None}),
}
