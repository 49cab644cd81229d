"""Foreign models whose tokens are packed: one row for all samples, or keys of earlier calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from .base import HEADS, TEXT, TOKENS, WIDTH, Foreign
from .models import PaddedJoint


@torch.library.custom_op("pab_foreign::varlen", mutates_args=())
def varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends_q: torch.Tensor, ends_k: torch.Tensor
) -> torch.Tensor:
    """Attention within parts of a row ``[tokens, heads, channels]``, which end where it is said."""
    out = torch.empty_like(q)
    places = zip(
        *(t.tolist() for t in (ends_q[:-1], ends_q[1:], ends_k[:-1], ends_k[1:])), strict=True
    )
    for start, stop, first, last in places:
        if stop > start:
            parts = (t.transpose(0, 1)[None] for t in (q[start:stop], k[first:last], v[first:last]))
            out[start:stop] = F.scaled_dot_product_attention(*parts)[0].transpose(0, 1)
    return out


@varlen.register_fake
def _(q: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(q)


class PaddedRow(PaddedJoint):
    """The joint sequences of all samples in one row; what is padded is a part of its own."""

    def inputs(self, step: int, num_steps: int) -> dict[str, Any]:
        return {**super().inputs(step, num_steps), "mask": torch.arange(TEXT) < LENGTHS[:, None]}

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        whole = torch.cat([self.patch(x) + self.embed(timestep), self.text(context)], 1)
        batch, length = whole.shape[:2]
        lengths, ends = mask.sum(1), torch.zeros(2 * batch + 1, dtype=torch.int32)
        for number in range(batch):
            ends[2 * number + 1] = number * length + TOKENS + lengths[number]
            ends[2 * number + 2] = (number + 1) * length
        return self.last(self.joint(whole, ends)[:, :TOKENS])

    def joint(self, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """Blocks of attention in one row, and of MLPs."""
        for number in range(self.DEPTH):
            joint, mlp = self.sites[2 * number : 2 * number + 2]
            h = self.norms[3 * number](x)
            x = x + joint(lambda n=number, h=h: self.in_a_row(n, h, ends))
            h = self.norms[3 * number + 2](x)
            x = x + mlp(lambda n=number, h=h: self.mlp(n, h))
        return x

    def in_a_row(self, number: int, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        attention = self.attentions[2 * number]
        made = (attention.query(x), attention.key(x), attention.value(x))
        rows = (t.reshape(-1, HEADS, WIDTH // HEADS) for t in made)
        return attention.back(varlen(*rows, ends, ends).reshape(x.shape))


LENGTHS = torch.tensor([4, 6])


class OneRow(PaddedRow):
    """Samples come as lists and stand in one row without a batch, each behind its prompt."""

    def inputs(self, step: int, num_steps: int) -> dict[str, Any]:
        given = Foreign.inputs(self, step, num_steps)
        prompts = [text[:length] for text, length in zip(given["context"], LENGTHS, strict=True)]
        return {**given, "x": list(given["x"]), "context": prompts}

    def forward(  # type: ignore[override]
        self, x: Sequence[torch.Tensor], timestep: torch.Tensor, context: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        samples = zip(context, x, self.embed(timestep), strict=True)
        parts = [part for text, v, t in samples for part in (self.text(text), self.patch(v) + t)]
        sizes = [len(part) for part in parts]
        lengths = torch.tensor(sizes).unflatten(0, (-1, 2)).sum(1)
        ends = F.pad(lengths.cumsum(0), (1, 0)).int()
        out = self.joint(torch.cat(parts), ends)
        return list(self.last(out).split(sizes)[1::2])


class VideosInOneRow(PaddedRow):
    """All videos come as one tensor ``[tokens, channels]``, with the ends of each."""

    KINDS = ("full", "mlp")

    def inputs(self, step: int, num_steps: int) -> dict[str, Any]:
        given = Foreign.inputs(self, step, num_steps)
        del given["context"]
        ends = torch.tensor([0, TOKENS, 2 * TOKENS], dtype=torch.int32)
        return {**given, "x": given["x"].flatten(0, 1), "cu_seqlens": ends}

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, timestep: torch.Tensor, cu_seqlens: torch.Tensor
    ) -> torch.Tensor:
        emb = self.embed(timestep)[:, 0].repeat_interleave(TOKENS, 0)
        return self.last(self.joint(self.patch(x) + emb, cu_seqlens))


class PackedPrompts(Foreign):
    """Cross-attention to the prompts of all samples in one row."""

    def inputs(self, step: int, num_steps: int) -> dict[str, Any]:
        given = super().inputs(step, num_steps)
        prompts = [text[:length] for text, length in zip(given["context"], LENGTHS, strict=True)]
        return {**given, "context": torch.cat(prompts)[None]}

    def cross_attention(self, number: int, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        attention = self.attentions[2 * number + 1]
        made = (attention.query(x), attention.key(text), attention.value(text))
        rows = (t.reshape(-1, HEADS, WIDTH // HEADS) for t in made)
        ends_q = torch.arange(len(x) + 1, dtype=torch.int32) * x.shape[1]
        ends_k = F.pad(torch.tensor([4, 6]).cumsum(0), (1, 0)).int()
        return attention.back(varlen(*rows, ends_q, ends_k).view(x.shape))


class PastKeys(Foreign):
    """Keys and values of earlier frames are given, per layer."""

    KINDS = ("joint", "cross", "mlp")
    PAST = 9

    def inputs(self, step: int, num_steps: int) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(96)
        shape = (2, HEADS, self.PAST, WIDTH // HEADS)
        past = [[torch.randn(shape, generator=draw) for _ in range(2)] for _ in range(self.DEPTH)]
        return {**super().inputs(step, num_steps), "past_key_values": past}

    def forward(  # type: ignore[override]
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        past_key_values: list[list[torch.Tensor]],
    ) -> torch.Tensor:
        self.past: Any = past_key_values
        return super().forward(x, timestep, context)

    def self_attention(self, number: int, x: torch.Tensor) -> torch.Tensor:
        attention = self.attentions[2 * number]
        q, k, v = attention.heads(x, x)
        k, v = (torch.cat([t, new], 2) for t, new in zip(self.past[number], (k, v), strict=True))
        y = F.scaled_dot_product_attention(q, k, v)
        return attention.back(y.transpose(1, 2).flatten(2))


class WrittenKeys(PastKeys):
    """The forward writes its keys into a cache of the caller, and attends to what stands there.

    The cache is an output. So a step that reuses still computes the keys, and the norm before.
    """

    def inputs(self, step: int, num_steps: int) -> dict[str, Any]:
        given = super().inputs(step, num_steps)
        room = (0, 0, 0, TOKENS + 4)
        past = given.pop("past_key_values")
        cache = [{n: F.pad(t, room) for n, t in zip("kv", one, strict=True)} for one in past]
        return {**given, "kv_cache": cache}

    def forward(  # type: ignore[override]
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        kv_cache: list[dict[str, torch.Tensor]],
    ) -> torch.Tensor:
        self.past = kv_cache
        return Foreign.forward(self, x, timestep, context)

    def self_attention(self, number: int, x: torch.Tensor) -> torch.Tensor:
        attention, cache = self.attentions[2 * number], self.past[number]
        q, k, v = attention.heads(x, x)
        stop = self.PAST + x.shape[1]
        cache["k"][:, :, self.PAST : stop] = k
        cache["v"][:, :, self.PAST : stop] = v
        y = F.scaled_dot_product_attention(q, cache["k"][:, :, :stop], cache["v"][:, :, :stop])
        return attention.back(y.transpose(1, 2).flatten(2))


PACKED: dict[str, Callable[[], Foreign]] = {
    "padded samples in one row": PaddedRow,
    "samples in one row": OneRow,
    "videos in one row": VideosInOneRow,
    "prompts in one row": PackedPrompts,
    "keys of earlier frames": PastKeys,
    "keys are written": WrittenKeys,
}
