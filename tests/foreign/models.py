"""The foreign models, each with one trait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .base import COLUMNS, FRAMES, HEADS, HEIGHT, TEXT, TOKENS, WIDTH, Attention, Foreign


class ListLatents(Foreign):
    """Latents and prompts come as lists, one entry per video, and go back as a list."""

    def inputs(self, step: int, num_steps: int) -> dict[str, Any]:
        given = super().inputs(step, num_steps)
        videos = given["x"].unflatten(1, (FRAMES, HEIGHT, COLUMNS)).movedim(-1, 1)
        return {**given, "x": list(videos), "context": list(given["context"])}

    def forward(  # type: ignore[override]
        self, x: Sequence[torch.Tensor], timestep: torch.Tensor, context: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        tokens = torch.cat([self.patch(video.flatten(1).T[None]) for video in x])
        text = self.text(torch.stack(list(context)))
        y = self.last(self.blocks(tokens + self.embed(timestep), text))
        return [v.T.unflatten(1, (FRAMES, HEIGHT, COLUMNS)) for v in y]


class Rotary(Foreign):
    """Positions turn queries and keys."""

    def self_attention(self, number: int, x: torch.Tensor) -> torch.Tensor:
        attention = self.attentions[2 * number]
        q, k, v = attention.heads(x, x)
        y = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v)
        return attention.back(y.transpose(1, 2).flatten(2))

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class ComplexRotary(Rotary):
    """... as complex numbers."""

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(TOKENS)[:, None] / torch.arange(1, 1 + x.shape[-1] // 2)
        turn = torch.polar(torch.ones_like(angles), angles)
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turn).flatten(-2).type_as(x)


class DoubleRotary(Rotary):
    """... as complex numbers of double precision, from a table that is cut to the grid."""

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.outer(torch.arange(64).double(), torch.arange(1, 4).double() / 10)
        turns = torch.polar(torch.ones_like(angles), angles)
        rows = turns[:FRAMES, :2].view(FRAMES, 1, 1, -1).expand(FRAMES, HEIGHT, COLUMNS, -1)
        row = turns[:HEIGHT, :2].view(1, HEIGHT, 1, -1).expand(FRAMES, HEIGHT, COLUMNS, -1)
        column = turns[:COLUMNS, :2].view(1, 1, COLUMNS, -1).expand(FRAMES, HEIGHT, COLUMNS, -1)
        turn = torch.cat([rows, row, column], -1).reshape(TOKENS, -1)
        pairs = torch.view_as_complex(x.to(torch.float64).reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


class PaddedJoint(Foreign):
    """Prompt and video in one sequence, in which the prompt is padded."""

    KINDS = ("joint", "mlp")

    def inputs(self, step: int, num_steps: int) -> dict[str, Any]:
        mask = torch.arange(TEXT) < torch.tensor([[4], [6]])
        return {**super().inputs(step, num_steps), "mask": mask}

    def forward(  # type: ignore[override]
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        whole = torch.cat([self.text(context), self.patch(x) + self.embed(timestep)], 1)
        seen = F.pad(mask, (0, TOKENS), value=True)[:, None, None]
        for number in range(self.DEPTH):
            joint, mlp = self.sites[2 * number : 2 * number + 2]
            h = self.norms[3 * number](whole)
            whole = whole + joint(lambda n=number, h=h: self.attentions[2 * n](h, h, seen))
            h = self.norms[3 * number + 2](whole)
            whole = whole + mlp(lambda n=number, h=h: self.mlp(n, h))
        return self.last(whole[:, TEXT:])


class PackedCross(Foreign):
    """Cross-attention over all videos in one row, with a block-diagonal mask."""

    def cross_attention(self, number: int, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        batch = x.shape[0]
        own = torch.arange(batch).repeat_interleave(x.shape[1])
        other = torch.arange(batch).repeat_interleave(text.shape[1])
        mask = own[:, None] == other
        packed = x.reshape(1, -1, WIDTH), text.reshape(1, -1, WIDTH)
        return self.attentions[2 * number + 1](*packed, mask).reshape(x.shape)


class TwoImages(Foreign):
    """Two further prompts, of images; the three results are added and projected once."""

    def __init__(self) -> None:
        super().__init__()
        self.images = nn.ModuleList(Attention() for _ in range(2 * self.DEPTH))

    def inputs(self, step: int, num_steps: int) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(98)
        images = {name: torch.randn(2, 3, 6, generator=draw) for name in ("clip_fea", "vae_fea")}
        return {**super().inputs(step, num_steps), **images}

    def forward(  # type: ignore[override]
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        clip_fea: torch.Tensor,
        vae_fea: torch.Tensor,
    ) -> torch.Tensor:
        texts = torch.cat([self.text(t) for t in (context, clip_fea, vae_fea)], 1)
        return self.last(self.blocks(self.patch(x) + self.embed(timestep), texts))

    def cross_attention(self, number: int, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        attention = self.attentions[2 * number + 1]
        parts = text.split([TEXT, 3, 3], 1)
        (q, *_), total = attention.heads(x, x), torch.zeros(())
        keys = (attention, *self.images[2 * number : 2 * number + 2])
        for other, part in zip(keys, parts, strict=True):
            _, k, v = other.heads(part, part)
            total = total + F.scaled_dot_product_attention(q, k, v)
        return attention.back(total.transpose(1, 2).flatten(2))


class UShaped(Foreign):
    """The later half reads what the earlier half computed, concatenated and projected."""

    def __init__(self) -> None:
        super().__init__()
        self.join = nn.Linear(2 * WIDTH, WIDTH)

    def blocks(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        skip = self.block(0, x, text)
        return self.block(1, self.join(torch.cat([skip, x], -1)), text)


class Experts(Foreign):
    """The MLP is a mixture of experts that all tokens run through, weighted."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 2)

    def mlp(self, number: int, x: torch.Tensor) -> torch.Tensor:
        weights = self.router(x).softmax(-1)
        return sum(  # type: ignore[return-value]
            weights[..., n : n + 1] * self.downs[n](F.silu(self.ups[n](x))) for n in range(2)
        )


class LinearWithConvolution(Foreign):
    """Linear attention whose values pass a convolution over the frame, and a convolutional MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(4 * WIDTH, 4 * WIDTH, 3, padding=1, groups=4 * WIDTH)

    def self_attention(self, number: int, x: torch.Tensor) -> torch.Tensor:
        attention = self.attentions[2 * number]
        q, k, v = attention.heads(x, x)
        q, k = F.relu(q), F.relu(k)
        y = q @ (k.transpose(-1, -2) @ v)
        total = q @ k.sum(-2, keepdim=True).transpose(-1, -2)
        return attention.back((y / (total + 1e-3)).transpose(1, 2).flatten(2))

    def mlp(self, number: int, x: torch.Tensor) -> torch.Tensor:
        h = F.silu(self.ups[number](x)).reshape(-1, HEIGHT, COLUMNS, 4 * WIDTH)
        h = self.depthwise(h.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.downs[number](h.reshape(*x.shape[:2], -1))


class Registers(Foreign):
    """Learned registers and tokens of the history stand before the video's."""

    KINDS = ("joint", "cross", "mlp")

    def __init__(self) -> None:
        super().__init__()
        self.registers = nn.Parameter(torch.randn(1, 2, WIDTH))

    def inputs(self, step: int, num_steps: int) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(97)
        history = torch.randn(2, 9, 4, generator=draw)
        return {**super().inputs(step, num_steps), "history": history}

    def forward(  # type: ignore[override]
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        history: torch.Tensor,
    ) -> torch.Tensor:
        first = self.registers.expand(x.shape[0], -1, -1)
        y = torch.cat([first, self.patch(history), self.patch(x)], 1) + self.embed(timestep)
        return self.last(self.blocks(y, self.text(context))[:, 11:])


class PostNorm(Foreign):
    """Each branch is normed after it, before it is added."""

    def block(self, number: int, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        full, cross, mlp = self.sites[3 * number : 3 * number + 3]
        x = x + full(lambda: self.norms[3 * number](self.self_attention(number, x)))
        x = x + cross(lambda: self.norms[3 * number + 1](self.cross_attention(number, x, text)))
        return x + mlp(lambda: self.norms[3 * number + 2](self.mlp(number, x)))


class ByHand(Foreign):
    """Attention by einsum and a softmax in float32, with grouped keys."""

    def self_attention(self, number: int, x: torch.Tensor) -> torch.Tensor:
        attention = self.attentions[2 * number]
        q, k, v = attention.heads(x, x)
        k, v = (t[:, :1].expand(-1, HEADS, -1, -1) for t in (k, v))
        scores = torch.einsum("bhqc,bhkc->bhqk", q.float(), k.float()) * q.shape[-1] ** -0.5
        y = torch.einsum("bhqk,bhkc->bqhc", scores.softmax(-1).type_as(v), v)
        return attention.back(y.flatten(2))


class Tuples(Foreign):
    """It asserts about its inputs, takes a number, and returns a tuple in a dict."""

    def inputs(self, step: int, num_steps: int) -> dict[str, Any]:
        return {**super().inputs(step, num_steps), "scale": 2.0, "options": {"fps": 8}}

    def forward(  # type: ignore[override]
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        scale: float,
        options: dict[str, Any],
    ) -> dict[str, Any]:
        assert x.ndim == 3 and context.shape[0] == x.shape[0]
        y = super().forward(x, timestep, context * scale)
        return {"sample": (y, options["fps"])}


MODELS: dict[str, Callable[[], Foreign]] = {
    "list latents": ListLatents,
    "complex rotary": ComplexRotary,
    "double rotary": DoubleRotary,
    "padded joint sequence": PaddedJoint,
    "packed cross-attention": PackedCross,
    "two image encoders": TwoImages,
    "U-shaped": UShaped,
    "experts": Experts,
    "linear attention, convolutions": LinearWithConvolution,
    "registers and history": Registers,
    "post-norm": PostNorm,
    "by hand": ByHand,
    "tuples in a dict": Tuples,
}
