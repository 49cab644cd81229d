"""Open-Sora 1.2: STDiT3, a 2+1D DiT of 1.1 billion parameters.

Spatial and temporal blocks alternate; each attends to the frame or along time, then to the prompt.
Written anew after hpcaitech/Open-Sora v1.2 (`opensora/models/stdit/stdit3.py`); parameters bear the
names and shapes of the released checkpoint (`hpcai-tech/OpenSora-STDiT-v3`).

Two things are expressed otherwise, so that the forward is one graph:

- Prompts of different length. The original drops padded prompt tokens (`masked_select`), packs what
  is left of all prompts into one sequence and runs block-diagonal attention over it. Here padded
  tokens stay and a mask excludes them. A query of row i sees the tokens of prompt i whose mask is
  set, and no others, in both: excluded keys have weight 0 in the softmax.
- The position table. The original reads height and width back to the host to scale it; here the
  scale stays a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .layers import (
    along_time,
    attend,
    embed_grid,
    embed_scalars,
    frequencies,
    normalise,
    prompt_mask,
    split_heads,
    unpatchify,
    within_frames,
)

Turn = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class STDiT3Config:
    """Sizes of an STDiT3.

    Attributes:
        hidden_size: channels of a token.
        depth: pairs of a spatial and a temporal block.
        num_heads: attention heads.
        mlp_ratio: width of the MLPs relative to `hidden_size`.
        in_channels: channels of the latents.
        patch_size: latent frames, rows and columns per token.
        caption_channels: channels of the prompt embeddings.
        max_prompt_tokens: length of the learned empty prompt.
        base_resolution: side in pixels of the square video to which positions are scaled.
    """

    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    in_channels: int = 4
    patch_size: tuple[int, int, int] = (1, 2, 2)
    caption_channels: int = 4096
    max_prompt_tokens: int = 300
    base_resolution: int = 512

    @property
    def out_channels(self) -> int:
        """Velocity, and a variance that sampling leaves aside."""
        return 2 * self.in_channels


XL_2 = STDiT3Config()
TINY = STDiT3Config(hidden_size=16, depth=2, num_heads=2, caption_channels=12, max_prompt_tokens=5)


class RMSNorm(nn.Module):
    """Root mean square norm over the channels of a head, in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * F.rms_norm(x.float(), x.shape[-1:], eps=1e-6).to(x.dtype)


class RotaryEmbedding(nn.Module):
    """Rotation of neighbouring channels by the position in the sequence."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.freqs = nn.Parameter(frequencies(dim), requires_grad=False)

    def forward(self, length: int) -> Turn:
        """Cosines and sines `[length, dim]` of the angles at every position."""
        positions = torch.arange(length, device=self.freqs.device).to(self.freqs.dtype)
        angles = (positions[:, None] * self.freqs).repeat_interleave(2, dim=-1)
        return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, turn: Turn) -> torch.Tensor:
    """Rotate the channel pairs (0, 1), (2, 3), ... of `[n, heads, length, dim]`."""
    first, second = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([-second, first], dim=-1).flatten(-2)
    return x * turn[0] + turned * turn[1]


class Attention(nn.Module):
    """Self-attention of `[n, tokens, channels]` with normalised queries and keys."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = RMSNorm(dim // num_heads)
        self.k_norm = RMSNorm(dim // num_heads)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, turn: Turn | None) -> torch.Tensor:
        query, key, value = (split_heads(y, self.num_heads) for y in self.qkv(x).chunk(3, dim=-1))
        query, key = self.q_norm(query), self.k_norm(key)
        if turn is not None:
            query, key = rotate(query, turn), rotate(key, turn)
        return self.proj(attend(query, key, value))


class CrossAttention(nn.Module):
    """Attention of `[b, tokens, channels]` to the prompt `[b, keys, channels]`."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: torch.Tensor, prompt: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        query = split_heads(self.q_linear(x), self.num_heads)
        key, value = (
            split_heads(y, self.num_heads) for y in self.kv_linear(prompt).chunk(2, dim=-1)
        )
        return self.proj(attend(query, key, value, mask))


class Mlp(nn.Module):
    """Two projections with a GELU in between."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Self-attention within frames or along time, attention to the prompt, MLP."""

    def __init__(self, config: STDiT3Config, temporal: bool) -> None:
        super().__init__()
        dim = config.hidden_size
        self.temporal = temporal
        self.attn = Attention(dim, config.num_heads)
        self.cross_attn = CrossAttention(dim, config.num_heads)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio), dim)
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)

    def forward(
        self,
        x: torch.Tensor,
        prompt: torch.Tensor,
        mask: torch.Tensor | None,
        modulation: torch.Tensor,
        turn: Turn,
    ) -> torch.Tensor:
        """One block.

        Args:
            x: `[b, t, s, c]`.
            prompt: `[b, tokens, c]`.
            mask: see `attend`.
            modulation: `[b, 1 or t, 6, c]`, shift, scale and gate of the attention and of the MLP.
            turn: rotation along time.
        """
        table = (self.scale_shift_table + modulation).chunk(6, dim=2)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = table
        y = normalise(x) * (1 + scale) + shift
        if self.temporal:
            x = x + gate * along_time(lambda tokens: self.attn(tokens, turn), y)
        else:
            x = x + gate * within_frames(lambda tokens: self.attn(tokens, None), y)
        x = x + self.cross_attn(x.flatten(1, 2), prompt, mask).view_as(x)
        return x + mlp_gate * self.mlp(normalise(x) * (1 + mlp_scale) + mlp_shift)


class FinalLayer(nn.Module):
    """Modulated norm and projection to the channels of the patches."""

    def __init__(self, dim: int, num_outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, num_outputs)
        self.scale_shift_table = nn.Parameter(torch.randn(2, dim) / dim**0.5)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Project `[b, t, s, c]`, with the embedded timestep `[b, 1 or t, c]`."""
        shift, scale = (self.scale_shift_table + time[:, :, None]).chunk(2, dim=2)
        return self.linear(normalise(x) * (1 + scale) + shift)


class ScalarEmbedder(nn.Module):
    """Embeds one number per batch row: the timestep, or the frames per second."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.mlp(embed_scalars(values).to(self.mlp[0].weight.dtype))


class CaptionEmbedder(nn.Module):
    """Projects the prompt; holds the embeddings of the empty prompt that guidance uses."""

    def __init__(self, config: STDiT3Config) -> None:
        super().__init__()
        self.y_proj = Mlp(config.caption_channels, config.hidden_size, config.hidden_size)
        empty = torch.randn(config.max_prompt_tokens, config.caption_channels)
        self.register_buffer("y_embedding", empty / config.caption_channels**0.5)

    def forward(self, prompt: torch.Tensor) -> torch.Tensor:
        return self.y_proj(prompt)


class PatchEmbed(nn.Module):
    """Patches of the latents as tokens; sizes that do not divide are padded with zeros."""

    def __init__(self, config: STDiT3Config) -> None:
        super().__init__()
        patch = config.patch_size
        self.proj = nn.Conv3d(config.in_channels, config.hidden_size, patch, stride=patch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[b, c, t, h, w]` to `[b, c, t', h', w']`."""
        missing = [-size % p for size, p in zip(x.shape[2:], self.proj.kernel_size, strict=True)]
        if any(missing):
            x = F.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]))
        return self.proj(x)


class STDiT3(nn.Module):
    """Open-Sora 1.2's transformer; any number of frames, rows and columns."""

    def __init__(self, config: STDiT3Config) -> None:
        super().__init__()
        dim, patch = config.hidden_size, config.patch_size
        self.config = config
        self.rope = RotaryEmbedding(dim // config.num_heads)
        self.x_embedder = PatchEmbed(config)
        self.t_embedder = ScalarEmbedder(dim)
        self.fps_embedder = ScalarEmbedder(dim)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.y_embedder = CaptionEmbedder(config)
        depth = range(config.depth)
        self.spatial_blocks = nn.ModuleList(Block(config, temporal=False) for _ in depth)
        self.temporal_blocks = nn.ModuleList(Block(config, temporal=True) for _ in depth)
        num_outputs = patch[0] * patch[1] * patch[2] * config.out_channels
        self.final_layer = FinalLayer(dim, num_outputs)

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        y: torch.Tensor,
        mask: torch.Tensor | None = None,
        x_mask: torch.Tensor | None = None,
        *,
        fps: torch.Tensor,
        height: torch.Tensor,
        width: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the velocity (and a variance).

        Args:
            x: latents `[b, c, t, h, w]`.
            timestep: `[b]`, between 0 and 1000.
            y: prompt embeddings `[b, 1, tokens, channels]`.
            mask: padding of the prompts, see `prompt_mask`.
            x_mask: `[b, t']`, false where a frame is given: such frames are modulated as at
                timestep 0. What is predicted for them means nothing.
            fps: frames per second `[1]` or `[b]`.
            height: height of the video in pixels `[1]` or `[b]`; all rows have the same.
            width: width of the video in pixels, likewise.

        Returns:
            Float32 `[b, 2 c, t, h, w]`.

        Raises:
            ValueError: the mask does not fit the prompts.
        """
        dtype = self.x_embedder.proj.weight.dtype
        batch, frames, rows, columns = x.shape[0], *x.shape[2:]
        seen = prompt_mask(mask, y)
        prompt = self.y_embedder(y.to(dtype)).flatten(1, 2)
        tokens = self.x_embedder(x.to(dtype))
        grid = tokens.shape[2], tokens.shape[3], tokens.shape[4]
        tokens = tokens.flatten(3).permute(0, 2, 3, 1)
        tokens = tokens + self.positions(grid, height, width).to(dtype)

        pace = self.fps_embedder(fps.repeat(batch // fps.shape[0]))
        time = (self.t_embedder(timestep.to(dtype)) + pace)[:, None]
        modulation = self.t_block(time)
        if x_mask is not None:
            given = (self.t_embedder(torch.zeros_like(timestep, dtype=dtype)) + pace)[:, None]
            noisy = x_mask[..., None]
            time = torch.where(noisy, time, given)
            modulation = torch.where(noisy, modulation, self.t_block(given))
        modulation = modulation.reshape(*modulation.shape[:-1], 6, -1)
        turn = self.rope(grid[0])
        for spatial, temporal in zip(self.spatial_blocks, self.temporal_blocks, strict=True):
            tokens = spatial(tokens, prompt, seen, modulation, turn)
            tokens = temporal(tokens, prompt, seen, modulation, turn)
        out = self.final_layer(tokens, time).flatten(1, 2)
        out = unpatchify(out, grid, self.config.patch_size)
        return out[:, :, :frames, :rows, :columns].float()

    def positions(
        self, grid: tuple[int, int, int], height: torch.Tensor, width: torch.Tensor
    ) -> torch.Tensor:
        """Spatial position table `[h * w, c]`, the same for videos of every resolution."""
        side = round((grid[1] * grid[2]) ** 0.5)
        scale = (height[0].float() * width[0].float()).sqrt() / self.config.base_resolution
        rows, columns = (
            torch.arange(size, device=height.device) / scale * (side / size) for size in grid[1:]
        )
        return embed_grid(rows, columns, self.config.hidden_size)
