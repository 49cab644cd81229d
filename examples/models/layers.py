"""What the models share: attention over split heads, sinusoidal tables, masks, patches."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention, heads merged afterwards.

    Args:
        query: `[n, heads, tokens, channels]`.
        key: `[n, heads, keys, channels]`.
        value: like `key`.
        mask: broadcastable to `[n, heads, tokens, keys]`: true where a key is seen, or added to the
            scores.

    Returns:
        `[n, tokens, heads * channels]`.
    """
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


def split_heads(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    """`[n, tokens, heads * channels]` to `[n, heads, tokens, channels]`."""
    return x.reshape(*x.shape[:-1], num_heads, -1).transpose(1, 2)


def within_frames(
    attention: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    """Apply an attention to `[b, t, s, c]` along `s`."""
    return attention(x.flatten(0, 1)).reshape(x.shape)


def along_time(attention: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Apply an attention to `[b, t, s, c]` along `t`."""
    out = attention(x.transpose(1, 2).flatten(0, 1))
    return out.reshape(x.transpose(1, 2).shape).transpose(1, 2)


def normalise(x: torch.Tensor) -> torch.Tensor:
    """Layer norm without parameters."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def frequencies(
    dim: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """`dim // 2` falling frequencies, from 1 to nearly 1 / 10000."""
    return 1.0 / 10000.0 ** (torch.arange(0, dim, 2, device=device, dtype=dtype) / dim)


def embed_positions(positions: torch.Tensor, dim: int) -> torch.Tensor:
    """Sines, then cosines, of positions `[n]` as `[n, dim]`."""
    freqs = frequencies(dim, positions.device, positions.dtype)
    angles = positions[:, None] * freqs
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def embed_scalars(values: torch.Tensor, dim: int = 256) -> torch.Tensor:
    """Cosines, then sines, of one number per batch row `[b]` as float `[b, dim]`."""
    half = torch.arange(dim // 2, device=values.device, dtype=torch.float32)
    angles = values[:, None].float() * torch.exp(-math.log(10000) * half / (dim // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def embed_grid(rows: torch.Tensor, columns: torch.Tensor, dim: int) -> torch.Tensor:
    """A table for a grid, `[rows * columns, dim]`: columns in the first half of the channels."""
    table = [
        embed_positions(columns, dim // 2).expand(len(rows), -1, -1),
        embed_positions(rows, dim // 2)[:, None].expand(-1, len(columns), -1),
    ]
    return torch.cat(table, dim=-1).flatten(0, 1)


def prompt_mask(mask: torch.Tensor | None, prompt: torch.Tensor) -> torch.Tensor | None:
    """Check a prompt's padding mask and give it one row per row of the batch.

    Args:
        mask: `[rows, tokens]` or `[rows, 1, tokens]`, non-zero where a token is seen. Fewer rows
            than the batch has are repeated (one mask for prompt and empty prompt).
        prompt: `[batch, ..., tokens, channels]`.

    Returns:
        Boolean `[batch, 1, 1, tokens]`, or None without a mask.

    Raises:
        ValueError: the mask has another number of tokens, or its rows do not divide the batch.
    """
    if mask is None:
        return None
    batch, tokens = prompt.shape[0], prompt.shape[-2]
    rows = mask.shape[0]
    middle = tuple(mask.shape[1:-1])
    if mask.ndim < 2 or any(size != 1 for size in middle) or mask.shape[-1] != tokens:
        raise ValueError(
            f"The prompt mask has shape {tuple(mask.shape)}, but the prompt has {tokens} tokens: "
            f"give one number per token, shape ({batch}, {tokens})."
        )
    if batch % rows:
        raise ValueError(
            f"The prompt mask has {rows} rows, which cannot be repeated to a batch of {batch}: "
            f"give one row per prompt, shape ({batch}, {tokens})."
        )
    return (mask.reshape(rows, tokens) != 0).repeat(batch // rows, 1)[:, None, None]


def unpatchify(
    x: torch.Tensor, grid: tuple[int, int, int], patch: tuple[int, int, int]
) -> torch.Tensor:
    """`[b, t h w, pt ph pw c]` with a patch of `pt, ph, pw` to `[b, c, t pt, h ph, w pw]`."""
    x = x.reshape(x.shape[0], *grid, *patch, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
