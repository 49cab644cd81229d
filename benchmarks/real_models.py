"""Models at the size that people run, without weights: their configurations and inputs.

All tensors are described only (``meta``), so the largest of them fits any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch

_BF16 = torch.bfloat16


@dataclass(frozen=True)
class RealModel:
    """A published model.

    Attributes:
        name: as it is known.
        size: what is made: resolution, and frames if it is a video.
        cls: name of the class in diffusers.
        config: constructor arguments where the class has other defaults.
        inputs: arguments of the forward.
    """

    name: str
    size: str
    cls: str
    inputs: Callable[[], dict[str, Any]]
    config: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> torch.nn.Module:
        """The model in bfloat16, without memory for its weights."""
        with torch.device("meta"):
            return (
                getattr(diffusers, self.cls)(**self.config).to(_BF16).eval().requires_grad_(False)
            )


def _values(*shape: int, dtype: torch.dtype = _BF16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _clock(dtype: torch.dtype = _BF16) -> torch.Tensor:
    return _values(1, dtype=dtype)


def _flux(channels: int, text: int, width: int, ids: int) -> dict[str, Any]:
    """1024 x 1024: 64 x 64 tokens."""
    return {
        "hidden_states": _values(1, 4096, channels),
        "encoder_hidden_states": _values(1, text, width),
        "timestep": _clock(),
        "guidance": _values(1, dtype=torch.float32),
        "img_ids": _values(4096, ids),
        "txt_ids": _values(text, ids),
    }


def _flux1() -> dict[str, Any]:
    return {**_flux(64, 512, 4096, 3), "pooled_projections": _values(1, 768)}


def _chroma() -> dict[str, Any]:
    inputs = _flux(64, 512, 4096, 3)
    del inputs["guidance"]
    return {**inputs, "attention_mask": _values(1, 4608, dtype=torch.bool)}


def _wan() -> dict[str, Any]:
    """1280 x 720, 81 frames."""
    return {
        "hidden_states": _values(1, 16, 21, 90, 160),
        "timestep": _clock(torch.float32),
        "encoder_hidden_states": _values(1, 512, 4096),
    }


def _wan_image() -> dict[str, Any]:
    inputs = _wan()
    return {**inputs, "hidden_states": _values(1, 36, 21, 90, 160)}


def _hunyuan_video() -> dict[str, Any]:
    """1280 x 720, 129 frames."""
    return {
        "hidden_states": _values(1, 16, 33, 90, 160),
        "timestep": _clock(torch.int64),
        "encoder_hidden_states": _values(1, 256, 4096),
        "encoder_attention_mask": _values(1, 256, dtype=torch.bool),
        "pooled_projections": _values(1, 768),
        "guidance": _clock(),
    }


def _hunyuan_video_15() -> dict[str, Any]:
    """848 x 480, 121 frames."""
    return {
        "hidden_states": _values(1, 65, 31, 30, 53),
        "timestep": _clock(),
        "encoder_hidden_states": _values(1, 1000, 3584),
        "encoder_attention_mask": _values(1, 1000, dtype=torch.bool),
        "encoder_hidden_states_2": _values(1, 256, 1472),
        "encoder_attention_mask_2": _values(1, 256, dtype=torch.bool),
        "image_embeds": _values(1, 729, 1152),
    }


def _ltx2() -> dict[str, Any]:
    """768 x 512, 121 frames, with five seconds of sound."""
    return {
        "hidden_states": _values(1, 16 * 16 * 24, 128),
        "audio_hidden_states": _values(1, 126, 128),
        "encoder_hidden_states": _values(1, 1024, 3840),
        "audio_encoder_hidden_states": _values(1, 1024, 3840),
        "timestep": _clock(),
        "encoder_attention_mask": _values(1, 1024),
        "audio_encoder_attention_mask": _values(1, 1024),
        "num_frames": 16,
        "height": 16,
        "width": 24,
        "audio_num_frames": 126,
        "video_coords": _values(1, 3, 16 * 16 * 24, 2, dtype=torch.float32),
        "audio_coords": _values(1, 1, 126, 2, dtype=torch.float32),
    }


def _cogvideox() -> dict[str, Any]:
    """720 x 480, 49 frames."""
    tokens = 13 * 30 * 45
    table = _values(tokens, 64, dtype=torch.float32)
    return {
        "hidden_states": _values(1, 13, 16, 60, 90),
        "encoder_hidden_states": _values(1, 226, 4096),
        "timestep": _clock(torch.int64),
        "image_rotary_emb": (table, table.clone()),
    }


def _mochi() -> dict[str, Any]:
    """848 x 480, 163 frames."""
    return {
        "hidden_states": _values(1, 12, 28, 60, 106),
        "encoder_hidden_states": _values(1, 256, 4096),
        "timestep": _clock(torch.float32),
        "encoder_attention_mask": _values(1, 256, dtype=torch.bool),
    }


def _qwen_image() -> dict[str, Any]:
    """1328 x 1328: 83 x 83 tokens."""
    return {
        "hidden_states": _values(1, 83 * 83, 64),
        "encoder_hidden_states": _values(1, 512, 3584),
        "encoder_hidden_states_mask": None,
        "timestep": _clock(),
        "img_shapes": [[(1, 83, 83)]],
    }


def _z_image() -> dict[str, Any]:
    """1024 x 1024: 64 x 64 tokens."""
    return {
        "x": [_values(16, 1, 128, 128)],
        "t": _clock(),
        "cap_feats": [_values(256, 2560)],
    }


def _sd35() -> dict[str, Any]:
    """1024 x 1024: 64 x 64 tokens."""
    return {
        "hidden_states": _values(1, 16, 128, 128),
        "encoder_hidden_states": _values(1, 333, 4096),
        "pooled_projections": _values(1, 2048),
        "timestep": _clock(),
    }


def _latte() -> dict[str, Any]:
    """512 x 512, 16 frames."""
    return {
        "hidden_states": _values(1, 4, 16, 64, 64),
        "timestep": _clock(torch.int64),
        "encoder_hidden_states": _values(1, 120, 4096),
    }


_COGVIDEOX = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}
_SD35 = {
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}
_LATTE = {
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "cross_attention_dim": 1152,
    "attention_bias": True,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "caption_channels": 4096,
}

REAL_MODELS = {
    model.name: model
    for model in (
        RealModel("Latte-1", "512x512, 16 frames", "LatteTransformer3DModel", _latte, _LATTE),
        RealModel(
            "CogVideoX-5B", "720x480, 49", "CogVideoXTransformer3DModel", _cogvideox, _COGVIDEOX
        ),
        RealModel("Wan 2.1 14B", "1280x720, 81", "WanTransformer3DModel", _wan),
        RealModel(
            "Wan 2.2 14B, image",
            "1280x720, 81",
            "WanTransformer3DModel",
            _wan_image,
            {"in_channels": 36},
        ),
        RealModel(
            "HunyuanVideo", "1280x720, 129", "HunyuanVideoTransformer3DModel", _hunyuan_video
        ),
        RealModel(
            "HunyuanVideo-1.5",
            "848x480, 121",
            "HunyuanVideo15Transformer3DModel",
            _hunyuan_video_15,
        ),
        RealModel("LTX-2", "768x512, 121, sound", "LTX2VideoTransformer3DModel", _ltx2),
        RealModel("Mochi", "848x480, 163", "MochiTransformer3DModel", _mochi),
        RealModel(
            "FLUX.1", "1024x1024", "FluxTransformer2DModel", _flux1, {"guidance_embeds": True}
        ),
        RealModel(
            "FLUX.2", "1024x1024", "Flux2Transformer2DModel", lambda: _flux(128, 512, 15360, 4)
        ),
        RealModel("Chroma", "1024x1024", "ChromaTransformer2DModel", _chroma),
        RealModel("Qwen-Image", "1328x1328", "QwenImageTransformer2DModel", _qwen_image),
        RealModel("Z-Image", "1024x1024", "ZImageTransformer2DModel", _z_image),
        RealModel("SD3.5 Large", "1024x1024", "SD3Transformer2DModel", _sd35, _SD35),
    )
}
