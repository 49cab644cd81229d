"""Models and inputs: diffusers' Latte at the sizes that the benchmarks need."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers import LatteTransformer3DModel


@dataclass(frozen=True)
class Size:
    """Size of a Latte and of its input.

    Attributes:
        num_layers: number of spatial blocks, and of temporal blocks.
        num_heads: attention heads.
        head_dim: channels per head.
        num_frames: latent frames.
        side: height and width of a latent frame; patches are 2x2.
        num_tokens: tokens of the prompt.
        caption_channels: width of the prompt's embeddings.
        learned_sigma: whether the model also predicts a variance, as Latte-1 does.
    """

    num_layers: int
    num_heads: int
    head_dim: int
    num_frames: int
    side: int
    num_tokens: int = 16
    caption_channels: int = 128
    learned_sigma: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


SMALL = {"num_heads": 2, "head_dim": 32, "num_frames": 4, "side": 8, "caption_channels": 32}
"""Small width: compile time and overhead, where the amount of arithmetic is beside the point."""
TINY = Size(num_layers=2, **SMALL)
CPU_DEEP = Size(num_layers=8, num_heads=4, head_dim=64, num_frames=8, side=32)
CPU_SMALL = Size(num_layers=4, num_heads=4, head_dim=64, num_frames=8, side=16)
LATTE_1 = Size(28, 16, 72, 16, 64, num_tokens=120, caption_channels=4096, learned_sigma=True)
IN_CHANNELS = 4


def make_model(
    size: Size, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> LatteTransformer3DModel:
    """Builds a Latte with random weights, frozen and in evaluation mode."""
    torch.manual_seed(0)
    width = size.num_heads * size.head_dim
    with torch.device(device):
        model = LatteTransformer3DModel(
            sample_size=size.side,
            video_length=size.num_frames,
            patch_size=2,
            in_channels=IN_CHANNELS,
            out_channels=IN_CHANNELS * (2 if size.learned_sigma else 1),
            num_layers=size.num_layers,
            num_attention_heads=size.num_heads,
            attention_head_dim=size.head_dim,
            cross_attention_dim=width,
            caption_channels=size.caption_channels,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
        )
    if dtype != torch.float32:
        model = model.to(dtype)
    return model.to(device).eval().requires_grad_(False)


def make_latents(
    size: Size, device: str = "cpu", dtype: torch.dtype = torch.float32, batch: int = 1
) -> torch.Tensor:
    """Draws noise `[batch, channels, frames, side, side]`, the same on every device."""
    generator = torch.Generator().manual_seed(1)
    shape = (batch, IN_CHANNELS, size.num_frames, size.side, size.side)
    return torch.randn(shape, generator=generator).to(device, dtype)


def make_prompts(
    size: Size, device: str = "cpu", dtype: torch.dtype = torch.float32, batch: int = 2
) -> torch.Tensor:
    """Draws prompt embeddings `[batch, tokens, caption_channels]`."""
    generator = torch.Generator().manual_seed(2)
    shape = (batch, size.num_tokens, size.caption_channels)
    return torch.randn(shape, generator=generator).to(device, dtype)


def make_inputs(size: Size, timestep: torch.Tensor | None = None) -> dict[str, Any]:
    """Returns keyword arguments of one call on the CPU, prompted and unprompted in one batch."""
    t = torch.tensor(999) if timestep is None else timestep
    return {
        "hidden_states": make_latents(size, batch=2),
        "timestep": t.expand(2),
        "encoder_hidden_states": make_prompts(size),
        "return_dict": False,
    }
