"""Attention in all its forms."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .spec import Spec

HEAD = 8
Tensor = torch.Tensor


class HandNorm(nn.Module):
    """A root mean square norm, written out in float32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Norm the last dimension."""
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)
        return (y * self.weight.float()).to(x.dtype)


class Unit(nn.Module):
    """Vectors of length one, by a learned factor."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.rand(channels) + 1.5)

    def forward(self, x: Tensor) -> Tensor:
        """Norm the last dimension."""
        return F.normalize(x, dim=-1) * self.factor


def norm_of(name: str, channels: int) -> nn.Module:
    """A norm of the last dimension."""
    made = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "by hand": HandNorm, "unit": Unit}
    return made[name](channels) if name != "none" else nn.Identity()


def angles_of(positions: Tensor) -> Tensor:
    """Angles ``[tokens, HEAD / 2]`` of positions ``[tokens, axes]``, axis by axis."""
    turned = positions[:, :, None] / torch.tensor([1.0, 4.0])
    return turned.flatten(1).repeat(1, 2)[:, : HEAD // 2]


def turn(form: str, x: Tensor, angles: Tensor) -> Tensor:
    """Turn the channels of ``[..., tokens, HEAD]`` by a rotary embedding."""
    if form == "none":
        return x
    if form in ("complex", "double"):
        kind = torch.float64 if form == "double" else torch.float32
        turns = torch.polar(torch.ones_like(angles, dtype=kind), angles.to(kind))
        pairs = torch.view_as_complex(x.to(kind).reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    if form == "half":
        one, other = x.chunk(2, -1)
        cos, sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
        return x * cos + torch.cat([-other, one], -1) * sin
    if form == "interleaved":
        one, other = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([one * cos - other * sin, one * sin + other * cos], -1).flatten(-2)
    if form == "partial":
        kept, turned = x[..., HEAD // 2 :], x[..., : HEAD // 2]
        one, other = turned.chunk(2, -1)
        cos, sin = cos[:, : HEAD // 4], sin[:, : HEAD // 4]
        return torch.cat([one * cos - other * sin, other * cos + one * sin, kept], -1)
    if form == "slices":
        out = torch.empty_like(x)
        out[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
        out[..., 1::2] = x[..., 0::2] * sin + x[..., 1::2] * cos
        return out
    assert form == "einsum"
    matrix = torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2))
    return torch.einsum("...nci,ncoi->...nco", x.unflatten(-1, (-1, 2)), matrix).flatten(-2)


class Attention(nn.Module):
    """Attention of one sequence to another, without the output projection.

    Args:
        spec: of the model.
        is_self: whether queries and keys are of one sequence.
    """

    def __init__(self, spec: Spec, is_self: bool) -> None:
        super().__init__()
        self.spec, self.is_self = spec, is_self
        width = spec.channels
        self.kv_heads = spec.heads if spec.grouped == "none" else 1
        inner = HEAD * self.kv_heads
        self.module: nn.Module | None = None
        if spec.core == "module":
            self.module = nn.MultiheadAttention(width, spec.heads, batch_first=True)
        elif spec.qkv == "one" and is_self:
            self.all = nn.Linear(width, width + 2 * inner)
        else:
            self.query = nn.Linear(width, width)
            if spec.qkv == "kv":
                self.both = nn.Linear(width, 2 * inner)
            else:
                self.key, self.value = nn.Linear(width, inner), nn.Linear(width, inner)
        name = "rms" if spec.qk_norm == "whole" else spec.qk_norm
        is_whole = spec.qk_norm == "whole"
        self.query_norm = norm_of(name, width if is_whole else HEAD)
        self.key_norm = norm_of(name, inner if is_whole else HEAD)
        self.sink = nn.Parameter(torch.randn(2, self.kv_heads, 1, HEAD))
        self.gate = nn.Linear(width, width) if spec.own_gate else None

    def forward(
        self, x: Tensor, y: Tensor, mask: Tensor | None = None, angles: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            x: queries ``[..., tokens, channels]``.
            y: keys, likewise.
            mask: which keys are there, boolean ``[batch, keys]``.
            angles: of rotary positions, ``[tokens, HEAD / 2]``.
        """
        if self.module is not None:
            out = self._by_module(self.module, x, y, mask)
        else:
            out = self.mix(*self.heads(x, y), mask, angles)
        return out if self.gate is None else out * torch.sigmoid(self.gate(x))

    def _by_module(self, module: nn.Module, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        lead = x.shape[:-2]
        x, y = x.flatten(0, -3), y.flatten(0, -3)
        hidden = None if mask is None else ~mask
        weights = self.spec.qkv == "one"
        out, _ = module(x, y, y, key_padding_mask=hidden, need_weights=weights)
        return out.unflatten(0, lead)

    def heads(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Queries, keys and values ``[..., heads, tokens, HEAD]``."""
        inner = HEAD * self.kv_heads
        if self.spec.qkv == "one" and self.is_self:
            q, k, v = self.all(x).split([self.spec.channels, inner, inner], -1)
        elif self.spec.qkv == "kv":
            q, (k, v) = self.query(x), self.both(y).chunk(2, -1)
        else:
            q, k, v = self.query(x), self.key(y), self.value(y)
        if self.spec.qk_norm == "whole":
            q, k = self.query_norm(q), self.key_norm(k)
        q, k, v = (t.unflatten(-1, (-1, HEAD)).transpose(-2, -3) for t in (q, k, v))
        if self.spec.qk_norm == "whole":
            return [q, k, v]
        return [self.query_norm(q), self.key_norm(k), v]

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, angles: Tensor | None
    ) -> Tensor:
        """The attention itself; ``[..., tokens, channels]``."""
        spec = self.spec
        if angles is not None:
            q, k = turn(spec.rotary, q, angles), turn(spec.rotary, k, angles)
        if spec.grouped == "repeat":
            k, v = (t.repeat_interleave(spec.heads, -3) for t in (k, v))
        elif spec.grouped == "expand":
            k, v = (t.expand(*q.shape[:-2], *t.shape[-2:]) for t in (k, v))
        if mask is not None:
            mask = mask.reshape(len(mask), *[1] * (q.ndim - 2), mask.shape[-1])
        if self.is_self and spec.attending != "none":
            return self._further(q, k, v, mask).transpose(-2, -3).flatten(-2)
        return self._core(q, k, v, mask).transpose(-2, -3).flatten(-2)

    def _further(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """With a trait beside queries, keys and values."""
        form = self.spec.attending
        if form == "difference":
            (q, other_q), (k, other_k) = q.chunk(2, -1), k.chunk(2, -1)
            return self._core(q, k, v, mask) - 0.4 * self._core(other_q, other_k, v, mask)
        if form == "pooled":
            if mask is not None or k.shape[-2] % 2:
                return self._core(q, k, v, mask)
            return self._core(q, *(t.unflatten(-2, (-1, 2)).mean(-2) for t in (k, v)), None)
        if form == "sink":
            sinks = (t.expand(*k.shape[:-2], 1, HEAD).to(k.dtype) for t in self.sink)
            k, v = (torch.cat([t, x], -2) for t, x in zip(sinks, (k, v), strict=True))
            return self._core(q, k, v, None if mask is None else F.pad(mask, (1, 0), value=True))
        rows, columns = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
        if form == "causal":
            seen = (columns < k.shape[-2] // 2) | (rows >= q.shape[-2] // 2)
            return self._core(q, k, v, seen if mask is None else mask & seen)
        if form == "bias":
            slopes = torch.arange(1, 1 + q.shape[-3])[:, None, None] / 4
            bias = (-slopes * (rows - columns).abs()).to(q.dtype)
            if mask is not None:
                bias = bias.masked_fill(~mask, -1e4)
            return self._core(q, k, v, bias)
        return self._core(q, k, v, mask)  # a cap

    def _core(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """The attention itself. The mask is boolean, or added."""
        spec = self.spec
        if spec.core == "sdpa":
            gqa = {"enable_gqa": True} if spec.grouped == "enable_gqa" else {}
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **gqa)
        if spec.core == "linear":
            return self._linear(q, k, v, mask)
        return self._by_hand(q, k, v, mask, q.shape[-1] ** -0.5)

    def _linear(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        q, k = F.elu(q) + 1, F.elu(k) + 1
        if mask is not None:
            k = k * mask.mT.to(k.dtype)
        total = q @ k.sum(-2, keepdim=True).mT
        return q @ (k.mT @ v) / (total + 1e-2)

    def _by_hand(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        core = self.spec.core
        added = mask
        if mask is not None and mask.dtype is torch.bool:
            added = torch.where(mask, 0.0, -1e4).to(q.dtype)

        def shaped(scores: Tensor) -> Tensor:
            if self.spec.attending == "cap":
                scores = 3 * torch.tanh(scores / 3)
            return scores if added is None else scores + added

        if core == "einsum":
            scores = torch.einsum("...qc,...kc->...qk", q, k) * scale
            return torch.einsum("...qk,...kc->...qc", shaped(scores).softmax(-1), v)
        if core == "softmax":
            scores = (q * scale) @ k.transpose(-2, -1)
            return torch.softmax(shaped(scores), -1, dtype=torch.float32).to(v.dtype) @ v
        lead = q.shape[:-2]
        flat = [t.reshape(-1, *t.shape[-2:]) for t in (q, k, v)]
        if core == "bmm":
            scores = torch.bmm(flat[0], flat[1].mT) * scale
        else:
            zero = flat[0].new_zeros(1, 1, 1)
            scores = torch.baddbmm(zero, flat[0], flat[1].mT, beta=0, alpha=scale)
        scores = scores.view(*lead, *scores.shape[-2:])
        found = shaped(scores).softmax(-1).flatten(0, -3)
        return torch.bmm(found, flat[2]).unflatten(0, lead)
