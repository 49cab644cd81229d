"""Open-Sora-Plan 1.2: a DiT whose self-attention runs over all tokens of the video.

Written anew after PKU-YuanGroup/Open-Sora-Plan v1.2.0
(`opensora/models/diffusion/opensora/modeling_opensora.py`, `OpenSoraT2V-ROPE-L/122`); parameters
bear the names and shapes of the released checkpoints (`LanguageBind/Open-Sora-Plan-v1.2.0`). Left
out: training on images beside videos, downsampled attention, absolute positions, which the release
does not use.

The original looks at the masks on the host and drops those that hide nothing; here a mask that is
given is added to the scores, where zeros change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from .layers import frequencies, normalise, prompt_mask, unpatchify
from .pixart import AdaLayerNormSingle, Block, FramePatchEmbed, Projection, pool_mask, to_bias


@dataclass(frozen=True)
class OpenSoraT2VConfig:
    """Sizes of an `OpenSoraT2V`.

    Attributes:
        num_layers: blocks.
        num_attention_heads: attention heads.
        attention_head_dim: channels of a head, a multiple of 6.
        in_channels: channels of the latents.
        patch_size: latent rows and columns per token.
        caption_channels: channels of the prompt embeddings.
        interpolation_scale: positions in time, rows and columns are divided by these.
    """

    num_layers: int = 32
    num_attention_heads: int = 24
    attention_head_dim: int = 96
    in_channels: int = 4
    patch_size: int = 2
    caption_channels: int = 4096
    interpolation_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def dim(self) -> int:
        """Channels of a token."""
        return self.num_attention_heads * self.attention_head_dim


V480P = OpenSoraT2VConfig()
V720P = OpenSoraT2VConfig(interpolation_scale=(1.0, 1.5, 2.0))
TINY = OpenSoraT2VConfig(
    num_layers=2, num_attention_heads=2, attention_head_dim=12, caption_channels=12
)


class OpenSoraT2V(nn.Module):
    """Open-Sora-Plan 1.2's transformer; any number of frames, rows and columns."""

    def __init__(self, config: OpenSoraT2VConfig) -> None:
        super().__init__()
        dim, heads = config.dim, config.num_attention_heads
        self.config = config
        self.pos_embed = FramePatchEmbed(config.in_channels, dim, config.patch_size)
        self.transformer_blocks = nn.ModuleList(Block(dim, heads) for _ in range(config.num_layers))
        self.scale_shift_table = nn.Parameter(torch.randn(2, dim) / dim**0.5)
        self.proj_out = nn.Linear(dim, config.patch_size**2 * config.in_channels)
        self.adaln_single = AdaLayerNormSingle(dim)
        activation = nn.GELU(approximate="tanh")
        self.caption_projection = Projection(config.caption_channels, dim, activation)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict the noise.

        Args:
            hidden_states: latents `[b, c, t, h, w]`.
            timestep: `[b]`, between 0 and 1000.
            encoder_hidden_states: prompt embeddings `[b, 1, tokens, channels]`.
            attention_mask: padding of the video, see `pool_mask`.
            encoder_attention_mask: padding of the prompts, see `prompt_mask`.

        Returns:
            `[b, c, t, h, w]`.

        Raises:
            ValueError: a mask does not fit.
        """
        patch, dtype = self.config.patch_size, self.proj_out.weight.dtype
        grid = (hidden_states.shape[2], *(size // patch for size in hidden_states.shape[3:]))
        prompt_bias = to_bias(prompt_mask(encoder_attention_mask, encoder_hidden_states), dtype)
        bias = None
        if attention_mask is not None:
            seen = pool_mask(attention_mask, hidden_states, patch)
            bias = to_bias(seen.flatten(1)[:, None, None], dtype)
        prompt = self.caption_projection(encoder_hidden_states.to(dtype)).flatten(1, 2)
        modulation, time = self.adaln_single(timestep)
        angles = self.angles(grid, hidden_states.device).to(dtype)
        turn = partial(rotate, cos=angles.cos(), sin=angles.sin())

        x = self.pos_embed(hidden_states.to(dtype)).flatten(1, 2)
        for block in self.transformer_blocks:
            x = block(x, modulation[:, None], prompt, bias, prompt_bias, turn)
        shift, scale = (self.scale_shift_table + time).chunk(2, dim=1)
        x = self.proj_out(normalise(x) * (1 + scale) + shift)
        return unpatchify(x, grid, (1, patch, patch))

    def angles(self, grid: tuple[int, int, int], device: torch.device) -> torch.Tensor:
        """Angles `[t * h * w, 3, channels / 6]` of the rotation by time, row and column."""
        freqs = frequencies(self.config.attention_head_dim // 3, device)
        axes = [
            torch.arange(size, device=device, dtype=torch.float32)[:, None] / scale * freqs
            for size, scale in zip(grid, self.config.interpolation_scale, strict=True)
        ]
        time, rows, columns = axes
        parts = [
            time[:, None, None].expand(*grid, -1),
            rows[None, :, None].expand(*grid, -1),
            columns[None, None].expand(*grid, -1),
        ]
        return torch.stack(parts, dim=-2).flatten(0, 2)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate `[b, heads, tokens, channels]`.

    A third of the channels turns with each axis; channel i of a third pairs with channel i of the
    third's other half.
    """
    first, second = x.reshape(*x.shape[:-1], 3, 2, -1).unbind(-2)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return torch.stack(turned, dim=-2).flatten(-3)
