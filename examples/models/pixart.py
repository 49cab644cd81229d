"""What Open-Sora-Plan 1.1 and 1.2 share: PixArt's layers, with the parameter names of diffusers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .layers import attend, embed_scalars, normalise, split_heads

MASKED = -10000.0  # added to the scores of padding, as in training

Rotation = Callable[[torch.Tensor], torch.Tensor]
Apply = Callable[[Callable[[torch.Tensor], torch.Tensor], torch.Tensor], torch.Tensor]


class Attention(nn.Module):
    """Attention of `[n, tokens, dim]` to itself or to a context of as many channels."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def forward(
        self,
        x: torch.Tensor,
        context: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        rotate: Rotation | None = None,
    ) -> torch.Tensor:
        """Attend.

        Args:
            x: `[n, tokens, dim]`.
            context: `[n, keys, dim]`; None: self-attention.
            bias: added to the scores, `[n, 1, 1, keys]`.
            rotate: applied to queries and keys `[n, heads, tokens, channels]`.
        """
        seen = x if context is None else context
        query, key, value = (
            split_heads(y, self.num_heads) for y in (self.to_q(x), self.to_k(seen), self.to_v(seen))
        )
        if rotate is not None:
            query, key = rotate(query), rotate(key)
        return self.to_out[0](attend(query, key, value, bias))


class Gelu(nn.Module):
    """A projection and its activation."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Two projections; the empty place between them is the original's dropout."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([Gelu(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net[2](self.net[0](x))


class Projection(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, dim: int, out: int, activation: nn.Module) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, out)
        self.act = activation
        self.linear_2 = nn.Linear(out, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(x)))


class TimestepEmbedding(nn.Module):
    """The timestep as a vector."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.timestep_embedder = Projection(256, dim, nn.SiLU())

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        scalars = embed_scalars(timestep)
        return self.timestep_embedder(scalars.to(self.timestep_embedder.linear_1.weight.dtype))


class AdaLayerNormSingle(nn.Module):
    """One modulation for all blocks, from the timestep."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.emb = TimestepEmbedding(dim)
        self.linear = nn.Linear(dim, 6 * dim)

    def forward(self, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[b]` to the blocks' modulation `[b, 6, dim]` and the output's `[b, 1, dim]`."""
        time = self.emb(timestep)
        table = self.linear(F.silu(time))
        return table.reshape(len(table), 6, -1), time[:, None]


class Block(nn.Module):
    """Self-attention, attention to the prompt (not in temporal blocks), feed-forward.

    Args:
        dim: channels of a token.
        num_heads: attention heads.
        apply: how the self-attention is applied to tokens that have axes of their own:
            `within_frames`, `along_time`, or None for one sequence.
        sees_prompt: whether the block attends to the prompt.
    """

    def __init__(
        self, dim: int, num_heads: int, apply: Apply | None = None, sees_prompt: bool = True
    ) -> None:
        super().__init__()
        self.apply_attention = apply or (lambda attention, x: attention(x))
        self.attn1 = Attention(dim, num_heads)
        self.attn2 = Attention(dim, num_heads) if sees_prompt else None
        self.ff = FeedForward(dim)
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)

    def forward(
        self,
        x: torch.Tensor,
        modulation: torch.Tensor,
        prompt: torch.Tensor,
        bias: torch.Tensor | None = None,
        prompt_bias: torch.Tensor | None = None,
        rotate: Rotation | None = None,
    ) -> torch.Tensor:
        """One block.

        Args:
            x: `[b, ..., dim]`.
            modulation: `[b, ..., 6, dim]`, of the rank of `x` and one.
            prompt: `[b, keys, dim]`.
            bias: see `Attention`, for the self-attention.
            prompt_bias: see `Attention`, for the prompt.
            rotate: see `Attention`, for the self-attention.
        """
        table = (self.scale_shift_table + modulation).unbind(-2)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = table

        def attention(tokens: torch.Tensor) -> torch.Tensor:
            return self.attn1(tokens, bias=bias, rotate=rotate)

        y = normalise(x) * (1 + scale) + shift
        x = x + gate * self.apply_attention(attention, y)
        if self.attn2 is not None:
            x = x + self.attn2(x.flatten(1, -2), prompt, prompt_bias).view_as(x)
        return x + mlp_gate * self.ff(normalise(x) * (1 + mlp_scale) + mlp_shift)


class FramePatchEmbed(nn.Module):
    """Patches of every frame as tokens."""

    def __init__(self, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[b, c, t, h, w]` to `[b, t, h' * w', dim]`."""
        frames = self.proj(x.transpose(1, 2).flatten(0, 1))
        tokens = frames.flatten(2).transpose(1, 2)
        return tokens.reshape(x.shape[0], -1, *tokens.shape[1:])


def to_bias(seen: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Turn a boolean mask of keys into what is added to their scores."""
    return None if seen is None else (~seen).to(dtype) * MASKED


def pool_mask(mask: torch.Tensor, latents: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Padding of the latents, as padding of the tokens.

    Args:
        mask: `[b, t, h, w]`, 1 where there is video.
        latents: `[b, c, t, h, w]`.
        patch_size: rows and columns per token.

    Returns:
        Boolean `[b, t, h' * w']`.

    Raises:
        ValueError: the mask has other sizes than the latents.
    """
    expected = (latents.shape[0], *latents.shape[2:])
    if tuple(mask.shape) != expected:
        raise ValueError(
            f"The video mask has shape {tuple(mask.shape)}, but the latents are "
            f"{tuple(latents.shape)}: give one number per latent pixel, shape {tuple(expected)}."
        )
    return F.max_pool2d(mask.float(), patch_size).flatten(2) != 0
