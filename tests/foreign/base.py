"""What the foreign models have in common: sites with a memory, which make them their own oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, HEADS = 24, 2
FRAMES, HEIGHT, COLUMNS, TEXT = 3, 4, 5, 7
TOKENS = FRAMES * HEIGHT * COLUMNS
RANGES = {"full": 2, "joint": 2, "cross": 3}
"""Kind -> compute at every n-th step; other kinds always compute."""


class Site(nn.Module):
    """Runs a function, or repeats what it returned before.

    Attributes:
        kind: of the attention inside; ``mlp`` for none.
        every: it computes at every so many steps while it is an oracle.
        step: the step of the oracle; None computes.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.every = kind, RANGES.get(kind, 1)
        self.step: int | None = None
        self.memory: Any = None

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        if self.step is not None and (self.step % self.every == 0 or self.memory is None):
            self.memory = function(*args)
        if self.step is None:
            return function(*args)
        return self.memory


class Attention(nn.Module):
    """Attention of one sequence to another, with its projections."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value, self.back = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def heads(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.query(x), self.key(y), self.value(y)
        return tuple(t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in found)

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        out = F.scaled_dot_product_attention(*self.heads(x, y), attn_mask=mask)
        return self.back(out.transpose(1, 2).flatten(2))


class Foreign(nn.Module):
    """Blocks of self-attention, cross-attention and an MLP over packed tokens of a video.

    Every branch stands behind a gate that is the same at every step, so that all cuts cache as
    much. Subclasses write one of these parts in another way.
    """

    KINDS = ("full", "cross", "mlp")
    DEPTH = 2

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.last = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.time, self.text = nn.Linear(8, WIDTH), nn.Linear(6, WIDTH)
        self.attentions = nn.ModuleList(Attention() for _ in range(self.DEPTH * 2))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(self.DEPTH * 3))
        self.ups = nn.ModuleList(nn.Linear(WIDTH, 4 * WIDTH) for _ in range(self.DEPTH))
        self.downs = nn.ModuleList(nn.Linear(4 * WIDTH, WIDTH) for _ in range(self.DEPTH))
        kinds = [kind for _ in range(self.DEPTH) for kind in self.KINDS]
        self.sites = nn.ModuleList(Site(kind) for kind in kinds)

    def inputs(self, step: int, num_steps: int) -> dict[str, Any]:
        """Arguments of the call at a step: latents, timestep and prompt."""
        draw = torch.Generator().manual_seed(step)
        prompt = torch.Generator().manual_seed(99)
        return {
            "x": torch.randn(2, TOKENS, 4, generator=draw),
            "timestep": torch.linspace(1000, 100, num_steps)[step].expand(2),
            "context": torch.randn(2, TEXT, 6, generator=prompt),
        }

    def embed(self, timestep: torch.Tensor) -> torch.Tensor:
        angles = timestep[:, None].float() / 100 * torch.arange(8)
        return self.time(angles.sin())[:, None]

    def forward(
        self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor
    ) -> torch.Tensor:
        x = self.patch(x) + self.embed(timestep)
        return self.last(self.blocks(x, self.text(context)))

    def blocks(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        for number in range(self.DEPTH):
            x = self.block(number, x, text)
        return x

    def block(self, number: int, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        full, cross, mlp = self.sites[3 * number : 3 * number + 3]
        x = x + full(lambda: self.self_attention(number, self.norms[3 * number](x)))
        x = x + cross(lambda: self.cross_attention(number, self.norms[3 * number + 1](x), text))
        return x + mlp(lambda: self.mlp(number, self.norms[3 * number + 2](x)))

    def self_attention(self, number: int, x: torch.Tensor) -> torch.Tensor:
        return self.attentions[2 * number](x, x)

    def cross_attention(self, number: int, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.attentions[2 * number + 1](x, text)

    def mlp(self, number: int, x: torch.Tensor) -> torch.Tensor:
        return self.downs[number](F.gelu(self.ups[number](x)))


@contextmanager
def as_oracle(model: Foreign, step: int, everything: bool = False) -> Iterator[None]:
    """The model repeats its sites as the plan says, or all of them."""
    for site in model.sites:
        site.step = 1 if everything else step
    yield
    for site in model.sites:
        site.step = None
