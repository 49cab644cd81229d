"""Foreign models in ways of writing that repositories of authors have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .base import TEXT, WIDTH, Foreign
from .models import Rotary


class NoGradients(Foreign):
    """Parts of the forward switch gradients off, and on again."""

    @torch.no_grad()
    def forward(
        self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor
    ) -> torch.Tensor:
        with torch.set_grad_enabled(self.training):
            text = self.text(context)
        return self.last(self.blocks(self.patch(x) + self.embed(timestep), text))


class TokensOfAll(Foreign):
    """Timestep, prompt and video are tokens of one sequence."""

    KINDS = ("joint", "mlp")

    def forward(
        self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor
    ) -> torch.Tensor:
        y = torch.cat([self.embed(timestep), self.text(context), self.patch(x)], 1)
        for number in range(self.DEPTH):
            joint, mlp = self.sites[2 * number : 2 * number + 2]
            h = self.norms[3 * number](y)
            y = y + joint(lambda n=number, h=h: self.self_attention(n, h))
            h = self.norms[3 * number + 2](y)
            y = y + mlp(lambda n=number, h=h: self.mlp(n, h))
        return self.last(y)[:, 1 + TEXT :]


class GuidedInside(Foreign):
    """Class labels, and guidance inside of the forward: both halves of the batch get one noise."""

    KINDS = ("full", "mlp")

    def __init__(self) -> None:
        super().__init__()
        self.labels = nn.Embedding(11, WIDTH)

    def inputs(self, step: int, num_steps: int) -> dict[str, Any]:
        given = super().inputs(step, num_steps)
        del given["context"]
        return {**given, "y": torch.tensor([3, 10]), "cfg_scale": 4.0}

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, timestep: torch.Tensor, y: torch.Tensor, cfg_scale: float
    ) -> torch.Tensor:
        half = x[: len(x) // 2]
        h = self.patch(torch.cat([half, half])) + self.embed(timestep) + self.labels(y)[:, None]
        for number in range(self.DEPTH):
            full, mlp = self.sites[2 * number : 2 * number + 2]
            g = self.norms[3 * number](h)
            h = h + full(lambda n=number, g=g: self.self_attention(n, g))
            g = self.norms[3 * number + 2](h)
            h = h + mlp(lambda n=number, g=g: self.mlp(n, g))
        noise, rest = self.last(h).split([3, 1], -1)
        cond, uncond = noise.chunk(2)
        guided = uncond + cfg_scale * (cond - uncond)
        return torch.cat([torch.cat([guided, guided]), rest], -1)


class VideoAlone(Foreign):
    """One sequence of prompt and video, to whose video cross-attention is added in place."""

    KINDS = ("joint", "cross", "mlp")

    def blocks(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        y = torch.cat([text, x], 1)
        for number in range(self.DEPTH):
            joint, cross, mlp = self.sites[3 * number : 3 * number + 3]
            h = self.norms[3 * number](y)
            y = y + joint(lambda n=number, h=h: self.self_attention(n, h))
            h = self.norms[3 * number + 1](y[:, TEXT:])
            y[:, TEXT:] += cross(lambda n=number, h=h: self.cross_attention(n, h, text))
            h = self.norms[3 * number + 2](y)
            y = y + mlp(lambda n=number, h=h: self.mlp(n, h))
        return y[:, TEXT:]


class FirstValues(Foreign):
    """The values of the first layer are a part of those of later layers."""

    def self_attention(self, number: int, x: torch.Tensor) -> torch.Tensor:
        attention = self.attentions[2 * number]
        q, k, v = attention.heads(x, x)
        self.values: Any = v if number == 0 else self.values
        y = F.scaled_dot_product_attention(q, k, 0.5 * v + 0.5 * self.values)
        return attention.back(y.transpose(1, 2).flatten(2))


class Positions(Rotary):
    """Rotary embedding of positions that are an argument, as matrices."""

    def inputs(self, step: int, num_steps: int) -> dict[str, Any]:
        given = super().inputs(step, num_steps)
        places = torch.cartesian_prod(*(torch.arange(n).float() for n in (3, 4, 5)))
        return {**given, "img_ids": places.expand(2, -1, -1)}

    def forward(  # type: ignore[override]
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        img_ids: torch.Tensor,
    ) -> torch.Tensor:
        rates = 1 / torch.arange(1, 3)
        angles = torch.cat([torch.einsum("bn,d->bnd", p, rates) for p in img_ids.unbind(-1)], -1)
        cos, sin = angles.cos(), angles.sin()
        self.matrices = torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2))[:, None]
        return super().forward(x, timestep, context)

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        pairs = x.float().reshape(*x.shape[:-1], -1, 1, 2)
        turned = self.matrices[..., 0] * pairs[..., 0] + self.matrices[..., 1] * pairs[..., 1]
        return turned.reshape(x.shape).type_as(x)


class SquaredScores(Foreign):
    """Attention without a softmax."""

    def self_attention(self, number: int, x: torch.Tensor) -> torch.Tensor:
        attention = self.attentions[2 * number]
        q, k, v = attention.heads(x, x)
        y = F.relu(q @ k.mT).square() / x.shape[1] @ v
        return attention.back(y.transpose(1, 2).flatten(2))


class SeveralStreams(Foreign):
    """Two residual streams that learned weights mix, before and after every branch."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.write = (nn.Parameter(torch.randn(6, 2)) for _ in range(2))

    def blocks(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        streams = torch.stack([x, x], 2)
        for number in range(3 * self.DEPTH):
            h = torch.einsum("bsnc,n->bsc", streams, self.read[number])
            y = self.sites[number](lambda n=number, h=h: self.branch(n, self.norms[n](h), text))
            streams = streams + self.write[number][:, None] * y[:, :, None]
        return streams.sum(2)

    def branch(self, number: int, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        block, part = divmod(number, 3)
        if part == 0:
            return self.self_attention(block, x)
        return self.cross_attention(block, x, text) if part == 1 else self.mlp(block, x)


STYLES: dict[str, Callable[[], Foreign]] = {
    "gradients are switched": NoGradients,
    "timestep and prompt as tokens": TokensOfAll,
    "guidance inside": GuidedInside,
    "cross-attention of a part": VideoAlone,
    "values of the first layer": FirstValues,
    "positions as an argument": Positions,
    "squared scores": SquaredScores,
    "several streams": SeveralStreams,
}
