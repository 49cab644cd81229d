"""Open-Sora-Plan 1.1: a 2+1D DiT after Latte.

Blocks that attend within frames and to the prompt alternate with blocks that attend along time.
Written anew after PKU-YuanGroup/Open-Sora-Plan v1.1.0
(`opensora/models/diffusion/latte/modeling_latte.py`, `LatteT2V-XL/122`); parameters bear the names
and shapes of the released checkpoints (`LanguageBind/Open-Sora-Plan-v1.1.0`). Left out: training on
images beside videos, compressed keys, and rotary positions, which the release does not use.

The original repeats the prompt for every frame; here all tokens of a video attend to it at once,
which is the same sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .layers import (
    along_time,
    embed_grid,
    embed_positions,
    normalise,
    prompt_mask,
    unpatchify,
    within_frames,
)
from .pixart import AdaLayerNormSingle, Block, FramePatchEmbed, Projection, pool_mask, to_bias


@dataclass(frozen=True)
class LatteT2VConfig:
    """Sizes of a `LatteT2V`.

    Attributes:
        num_layers: pairs of a spatial and a temporal block.
        num_attention_heads: attention heads.
        attention_head_dim: channels of a head.
        in_channels: channels of the latents.
        out_channels: noise, and a variance that sampling leaves aside.
        patch_size: latent rows and columns per token.
        sample_size: latent rows (as many columns) that positions are scaled to.
        video_length: latent frames that positions are scaled to.
        caption_channels: channels of the prompt embeddings.
        num_empty_tokens: rows of the learned empty prompt.
    """

    num_layers: int = 28
    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int = 8
    patch_size: int = 2
    sample_size: int = 64
    video_length: int = 17
    caption_channels: int = 4096
    num_empty_tokens: int = 120

    @property
    def dim(self) -> int:
        """Channels of a token."""
        return self.num_attention_heads * self.attention_head_dim


V65X512X512 = LatteT2VConfig()
V221X512X512 = LatteT2VConfig(video_length=56)
TINY = LatteT2VConfig(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=8,
    sample_size=8,
    video_length=4,
    caption_channels=12,
    num_empty_tokens=3,
)


class CaptionProjection(Projection):
    """Projects the prompt; the checkpoint also holds an empty prompt, used in training."""

    def __init__(self, config: LatteT2VConfig) -> None:
        super().__init__(config.caption_channels, config.dim, nn.GELU(approximate="tanh"))
        empty = torch.randn(config.num_empty_tokens, config.caption_channels)
        self.register_buffer("y_embedding", empty / config.caption_channels**0.5)


class LatteT2V(nn.Module):
    """Open-Sora-Plan 1.1's transformer; any number of frames, rows and columns."""

    def __init__(self, config: LatteT2VConfig) -> None:
        super().__init__()
        dim, heads, layers = config.dim, config.num_attention_heads, range(config.num_layers)
        self.config = config
        self.pos_embed = FramePatchEmbed(config.in_channels, dim, config.patch_size)
        self.transformer_blocks = nn.ModuleList(Block(dim, heads, within_frames) for _ in layers)
        self.temporal_transformer_blocks = nn.ModuleList(
            Block(dim, heads, along_time, sees_prompt=False) for _ in layers
        )
        self.scale_shift_table = nn.Parameter(torch.randn(2, dim) / dim**0.5)
        self.proj_out = nn.Linear(dim, config.patch_size**2 * config.out_channels)
        self.adaln_single = AdaLayerNormSingle(dim)
        self.caption_projection = CaptionProjection(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict the noise (and a variance).

        Args:
            hidden_states: latents `[b, c, t, h, w]`.
            timestep: `[b]`, between 0 and 1000.
            encoder_hidden_states: prompt embeddings `[b, 1, tokens, channels]`.
            attention_mask: padding of the video, see `pool_mask`.
            encoder_attention_mask: padding of the prompts, see `prompt_mask`.

        Returns:
            `[b, 2 c, t, h, w]`.

        Raises:
            ValueError: a mask does not fit.
        """
        config, dtype = self.config, self.proj_out.weight.dtype
        frames = hidden_states.shape[2]
        rows, columns = (size // config.patch_size for size in hidden_states.shape[3:])
        prompt_bias = to_bias(prompt_mask(encoder_attention_mask, encoder_hidden_states), dtype)
        bias = None
        if attention_mask is not None:
            seen = pool_mask(attention_mask, hidden_states, config.patch_size)
            bias = to_bias(seen.flatten(0, 1)[:, None, None], dtype)
        prompt = self.caption_projection(encoder_hidden_states.to(dtype)).flatten(1, 2)
        modulation, time = self.adaln_single(timestep)
        modulation = modulation[:, None, None]

        x = self.pos_embed(hidden_states.to(dtype))
        x = x + self.places(rows, columns, x.device).to(dtype)
        layers = zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True)
        for layer, (spatial, temporal) in enumerate(layers):
            x = spatial(x, modulation, prompt, bias, prompt_bias)
            if layer == 0:
                x = x + self.moments(frames, x.device).to(dtype)
            x = temporal(x, modulation, prompt)
        shift, scale = (self.scale_shift_table + time).chunk(2, dim=1)
        x = self.proj_out(normalise(x.flatten(1, 2)) * (1 + scale) + shift)
        return unpatchify(x, (frames, rows, columns), (1, config.patch_size, config.patch_size))

    def places(self, rows: int, columns: int, device: torch.device) -> torch.Tensor:
        """Spatial position table `[h * w, c]`, stretched to the size of training."""
        base = self.config.sample_size // self.config.patch_size
        scale = max(self.config.sample_size // 64, 1)
        grid = (
            torch.arange(size, device=device, dtype=torch.float64) * (base / size / scale)
            for size in (rows, columns)
        )
        return embed_grid(*grid, self.config.dim)

    def moments(self, frames: int, device: torch.device) -> torch.Tensor:
        """Temporal position table `[t, 1, c]`; 16 frames have scale 1."""
        length = self.config.video_length
        scale = max((length - length % 2) // 16, 1)
        positions = torch.arange(frames, device=device, dtype=torch.float64) / scale
        return embed_positions(positions, self.config.dim)[:, None]
