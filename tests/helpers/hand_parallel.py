"""A small video DiT that its author made parallel by hand, with functional collectives.

Each rank holds its frames. Temporal attention gathers them with an all-to-all that deals out
places instead (or, in full attention, heads), and a second one brings the frames back. Alone it is
the same model without collectives.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention

CHANNELS, FRAMES, PLACES, HEADS = 8, 4, 6, 2


class Block(nn.Module):
    """Spatial attention, attention over frames (or all tokens), and an MLP."""

    def __init__(self, group: dist.ProcessGroup | None, full: bool) -> None:
        super().__init__()
        self.group, self.full = group, full
        self.num_ranks = group.size() if group else 1
        self.modulation = nn.Linear(CHANNELS, 4 * CHANNELS)
        self.spatial = nn.Linear(CHANNELS, 3 * CHANNELS)
        self.spatial_out = nn.Linear(CHANNELS, CHANNELS)
        self.temporal = nn.Linear(CHANNELS, 3 * CHANNELS)
        self.temporal_out = nn.Linear(CHANNELS, CHANNELS)
        self.up = nn.Linear(CHANNELS, 2 * CHANNELS)
        self.down = nn.Linear(2 * CHANNELS, CHANNELS)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        scale, gate, scale_t, gate_t = self.modulation(emb)[:, None, None].chunk(4, -1)
        y = attend(self.spatial(x * (1 + scale)))
        x = x + gate * self.spatial_out(y)
        y = self.temporal(x * (1 + scale_t)) if self.full else x * (1 + scale_t)
        y = self.over_all(y) if self.full else self.over_frames(y)
        x = x + gate_t * self.temporal_out(y)
        return x + self.down(gelu(self.up(x)))

    def over_frames(self, y: torch.Tensor) -> torch.Tensor:
        """DSP: frames to places and back."""
        y = self.switch(y, 2, 1)
        y = attend(self.temporal(y.transpose(1, 2))).transpose(1, 2)
        return self.switch(y, 1, 2)

    def over_all(self, qkv: torch.Tensor) -> torch.Tensor:
        """Ulysses: tokens to heads and back."""
        b, t, s, _ = qkv.shape
        qkv = qkv.reshape(b, t, s, 3, HEADS, -1)
        qkv = self.switch(qkv, 4, 1).flatten(1, 2)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        y = scaled_dot_product_attention(q, k, v).transpose(1, 2)
        y = y.reshape(b, -1, s, *y.shape[2:])
        return self.switch(y, 1, 3).flatten(3)

    def switch(self, x: torch.Tensor, dealt: int, gathered: int) -> torch.Tensor:
        """Shard one dimension over the ranks and gather another."""
        if self.group is None:
            return x
        x = x.unflatten(dealt, (self.num_ranks, -1)).movedim(dealt, 0).contiguous()
        x = funcol.all_to_all_single(x, None, None, self.group)
        return x.movedim(0, gathered).flatten(gathered, gathered + 1)


def attend(qkv: torch.Tensor) -> torch.Tensor:
    """Attention along the last dimension but one."""
    q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(-2, -3) for y in qkv.chunk(3, -1))
    return scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2)


class HandParallel(nn.Module):
    """The whole model: takes and returns all frames on every rank.

    Args:
        group: the ranks that share the frames; None for one process.
        full: attention over all tokens in place of attention over frames.
    """

    def __init__(self, group: dist.ProcessGroup | None, full: bool = False) -> None:
        super().__init__()
        self.group = group
        self.embed = nn.Linear(CHANNELS, CHANNELS)
        self.time = nn.Linear(CHANNELS, CHANNELS)
        self.blocks = nn.ModuleList(Block(group, full) for _ in range(2))
        self.last = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        b, c, t, h, w = latents.shape
        x = self.embed(latents.permute(0, 2, 3, 4, 1).reshape(b, t, h * w, c))
        if self.group is not None:
            x = x.chunk(self.group.size(), 1)[self.group.rank()]
        emb = self.time(torch.sin(timestep[:, None] * torch.arange(1, CHANNELS + 1)))
        for block in self.blocks:
            x = block(x, emb)
        if self.group is not None:
            x = funcol.all_gather_tensor(x, 1, self.group)
        return self.last(x).reshape(b, t, h, w, c).permute(0, 4, 1, 2, 3)


def build(group: dist.ProcessGroup | None, full: bool = False) -> HandParallel:
    """The model with reproducible weights, the same on all ranks."""
    torch.manual_seed(0)
    return HandParallel(group, full).eval().requires_grad_(False)


def draw_latents() -> torch.Tensor:
    """Noise ``[1, channels, frames, 2, 3]``."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, CHANNELS, FRAMES, 2, PLACES // 2, generator=generator)
