"""Attention ops of other libraries, in their layouts, and what may look like one."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as f
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import pab_compile
from helpers.captured import BATCH, CHANNELS, FRAMES, SPACE, TEXT, TOKENS, latents_of, usual
from helpers.latte import compiled_pab
from helpers.world import Mesh

WIDTH, HEADS = 16, 4
Tensor = torch.Tensor


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, slopes: Tensor | None = None) -> Any:
    """Attention over ``[b, h, s, d]`` with its log-sum-exp."""
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q @ k.mT * scale
    if slopes is not None:
        scores = scores + slopes.view(-1, 1, 1) * torch.arange(k.shape[2])
    return torch.softmax(scores, -1) @ v, scores.logsumexp(-1)


@torch.library.custom_op("pab_tests::flash_attn", mutates_args=())
def flash_attn(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, window: list[int]
) -> tuple[Tensor, Tensor]:
    """Attention over ``[b, s, h, d]``."""
    out, lse = _attend(*(x.transpose(1, 2) for x in (q, k, v)), scale)
    return out.transpose(1, 2).contiguous(), lse


@flash_attn.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, window: list[int]) -> Any:
    return torch.empty_like(q), q.new_empty(q.shape[0], q.shape[2], q.shape[1])


def _op(name: str, kernel: Any) -> Any:
    found = torch.library.custom_op(f"pab_tests::{name}", kernel, mutates_args=())

    @found.register_fake
    def _(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> Tensor:
        return q.new_empty(q.shape)

    return found


def _sage(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _attend(q, k, v, 0.25)[0]


def _sloped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _attend(q, k, v, 0.25, -0.1 * (1 + torch.arange(q.shape[1])))[0]


def _mixed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _attend(q, k, v, 0.25)[0] + 0.1 * v.mean(1, keepdim=True)


def _scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    step = k.abs().max() / 127  # one for all heads
    return _attend(q, (k / step).round() * step, v, 0.25)[0]


def _counted(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    assert num_heads == q.shape[1]
    return _attend(q, k, v, 0.25)[0]


def _listed(q: Tensor, k: Tensor, v: Tensor, slopes: list[float]) -> Tensor:
    return _attend(q, k, v, 0.25, torch.tensor(slopes)[: q.shape[1]])[0]


def _masked(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    return _attend(q, k, v, 0.25, slopes)[0]


def _choosy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.shape[1] != HEADS:
        raise NotImplementedError("no kernel for so many heads")
    return _attend(q, k, v, 0.25)[0]


def _noisy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return f.dropout(_attend(q, k, v, 0.25)[0], 0.5)


sage_attention = _op("sage_attention", _sage)
sloped_sage_attention = _op("sloped_sage_attention", _sloped)
mixed_sage_attention = _op("mixed_sage_attention", _mixed)
scaled_sage_attention = _op("scaled_sage_attention", _scaled)
counted_sage_attention = _op("counted_sage_attention", _counted)
listed_sage_attention = _op("listed_sage_attention", _listed)
masked_sage_attention = _op("masked_sage_attention", _masked)
noisy_sage_attention = _op("noisy_sage_attention", _noisy)
choosy_sage_attention = _op("choosy_sage_attention", _choosy)


def near(batch, head, query, key):  # type: ignore[no-untyped-def]
    return (query - key).abs() < 9


def near_by_head(batch, head, query, key):  # type: ignore[no-untyped-def]
    return (query - key).abs() < 5 * (head + 1)


def sloped(score, batch, head, query, key):  # type: ignore[no-untyped-def]
    return score - 0.1 * (query - key).abs()


def sloped_by_head(score, batch, head, query, key):  # type: ignore[no-untyped-def]
    return score - 0.1 * (head + 1) * (query - key).abs()


_HEADS_FIRST = {
    "sage": lambda q, k, v: sage_attention(q, k, v),
    "sloped by head": lambda q, k, v: sloped_sage_attention(q, k, v),
    "mixes heads": lambda q, k, v: mixed_sage_attention(q, k, v),
    "one scale": lambda q, k, v: scaled_sage_attention(q, k, v),
    "number of heads": lambda q, k, v: counted_sage_attention(q, k, v, q.shape[1]),
    "list of slopes": lambda q, k, v: listed_sage_attention(q, k, v, [0.1, 0.2, 0.3, 0.4]),
    "tensor of slopes": lambda q, k, v: masked_sage_attention(q, k, v, torch.arange(4) / 9),
    "dropout": lambda q, k, v: noisy_sage_attention(q, k, v),
    "four heads only": lambda q, k, v: choosy_sage_attention(q, k, v),
    "groups of torch": lambda q, k, v: f.scaled_dot_product_attention(q, k, v, enable_gqa=True),
    "flex": lambda q, k, v: flex_attention(q, k, v, score_mod=sloped),
    "flex, sloped by head": lambda q, k, v: flex_attention(q, k, v, score_mod=sloped_by_head),
}


class Mixing(nn.Module):
    """Self-attention over ``[b, s, c]`` by one of these ops.

    Args:
        how: which op.
        num_tokens: for block masks, which are made beforehand.
        key_heads: heads of the keys.
    """

    def __init__(self, how: str, num_tokens: int, key_heads: int = HEADS) -> None:
        super().__init__()
        self.how = how
        self.query = nn.Linear(WIDTH, WIDTH)
        inside = WIDTH // HEADS * key_heads
        self.key, self.value = (nn.Linear(WIDTH, inside) for _ in range(2))
        self.out = nn.Linear(WIDTH, WIDTH)
        masks = {"flex, masked": near, "flex, masked by head": near_by_head}
        heads = HEADS if "by head" in how else None
        if how in masks:
            self.mask = create_block_mask(
                masks[how], None, heads, num_tokens, num_tokens, device="cpu"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens."""
        size = WIDTH // HEADS
        q, k, v = (m(x).unflatten(-1, (-1, size)) for m in (self.query, self.key, self.value))
        if self.how == "flash":
            mixed = flash_attn(q, k, v, 0.3, False, [-1, -1])[0]
        else:
            q, k, v = (each.transpose(1, 2) for each in (q, k, v))
            if "masked" in self.how:
                mixed = flex_attention(q, k, v, block_mask=self.mask)
            else:
                mixed = _HEADS_FIRST[self.how](q, k, v)
            mixed = mixed.transpose(1, 2)  # type: ignore[union-attr]
        return self.out(mixed.flatten(2))


class Dit(nn.Module):
    """One attention over all tokens, over those of a frame, or beside a prompt."""

    def __init__(self, how: str, where: str, key_heads: int) -> None:
        super().__init__()
        num = {"": TOKENS, "frame": SPACE, "joint": TOKENS + TEXT}[where]
        self.where = where
        self.embed, self.text = (nn.Linear(CHANNELS, WIDTH) for _ in range(2))
        self.time = nn.Linear(WIDTH, WIDTH)
        self.attention = Mixing(how, num, key_heads)
        self.last = nn.Linear(WIDTH, CHANNELS)

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
    ) -> torch.Tensor:
        x = self.embed(latents.permute(0, 2, 3, 4, 1).reshape(BATCH, TOKENS, CHANNELS))
        x = x + self.time(torch.sin(timestep[:, None] * torch.arange(WIDTH)))[:, None]
        if self.where == "joint":
            text, y = self.attention(torch.cat([self.text(prompt), x], 1)).split([TEXT, TOKENS], 1)
            x = x + y + text.mean(1, keepdim=True)
        elif self.where == "frame":
            y = self.attention(x.reshape(BATCH * FRAMES, SPACE, WIDTH))
            x = x + y.reshape(BATCH, TOKENS, WIDTH)
        else:
            x = x + self.attention(x)
        return latents_of(self.last(x))


def draw(how: str, where: str = "", key_heads: int = HEADS) -> Dit:
    """A model with random weights."""
    torch.manual_seed(0)
    return Dit(how, where, key_heads).eval().requires_grad_(False)


def inputs() -> dict[str, Tensor]:
    """Inputs of one step."""
    return {name: usual(name) for name in ("latents", "timestep", "prompt")}


def generate(group: dist.ProcessGroup | None, how: str) -> tuple[Tensor, int]:
    """A generation that reuses every second output, and how often it reused."""
    torch._dynamo.reset()
    shared: dict[str, Any] = {"mesh": Mesh(group), "shard": "s"} if group is not None else {}
    compiled = compiled_pab(draw(how), ranges={"full": 2}, window=(0.0, 1.0), **shared)
    given, found = inputs(), []
    with torch.no_grad():
        for timestep in torch.arange(900.0, 500.0, -100.0):
            given |= {"timestep": timestep.expand(BATCH)}
            found.append(compiled(**given))
            given |= {"latents": given["latents"] - 0.1 * found[-1]}
    return torch.stack(found), pab_compile.stats(compiled).reused["full"]
