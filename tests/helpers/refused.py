"""Small models that stock torch.compile runs and that are refused, each for another reason.

Latents are called ``x``, the timestep ``timestep``. ``REFUSED`` holds the models whose whole output
can be reused, and ``WITHOUT_FLOOR`` those where not even that is possible.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._higher_order_ops.while_loop import while_loop
from torch.nn import functional as F

WIDTH = 8
PACKED, PICTURE = (2, 6, WIDTH), (2, 6, 4, 6)


@dataclass(frozen=True)
class Case:
    """A model, the shape of its latents, and what its refusal says.

    Attributes:
        make: makes the model.
        said: words of the error.
        shape: of the latents.
        clock: name of the timestep.
        around: what the model is called in.
    """

    make: Callable[[], nn.Module]
    said: str
    shape: tuple[int, ...] = PACKED
    clock: str = "timestep"
    around: Callable[[], AbstractContextManager[Any]] = nullcontext

    def inputs(self, step: int) -> dict[str, Any]:
        """Arguments of the call at a step."""
        draw = torch.Generator().manual_seed(step)
        x = torch.randn(self.shape, generator=draw)
        return {"x": x, self.clock: torch.full((len(x),), 1000.0 - 100 * step)}


class Small(nn.Module):
    """Tokens and a timestep, through one layer and what a subclass does with them."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.time = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.qkv, self.last = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def when(self, timestep: torch.Tensor) -> torch.Tensor:
        angles = timestep[:, None] / 100 * torch.arange(WIDTH)
        return self.time(angles.sin())[:, None]

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.last(self.body(self.patch(x) + self.when(timestep)))

    def body(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return x + F.scaled_dot_product_attention(q, k, v)


class NoAttention(Small):
    """Every token by itself."""

    def body(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(x)


class NoLayout(Small):
    """Rows of eight numbers, cut out of channels, rows and columns alike."""

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return super().forward(x.reshape(len(x), -1, WIDTH), timestep).reshape(x.shape)


class ManyDimensions(Small):
    """Latents of six dimensions, as of several views of a video."""

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(1, -2), timestep).reshape(x.shape)


class OtherMemory(Small):
    """A weight gets other memory, as hooks give it."""

    def body(self, x: torch.Tensor) -> torch.Tensor:
        self.last.weight.data = self.last.weight.data * 1
        return super().body(x)


class WritingVmap(Small):
    """What is mapped is written to."""

    def body(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, 1) * 1
        return super().body(torch.vmap(lambda row: row.mul_(2))(rows).reshape(x.shape))


class WhileLoop(Small):
    """How often a loop runs depends on values."""

    def body(self, x: torch.Tensor) -> torch.Tensor:
        def goes_on(count: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            return count < 3

        def halved(count: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return count + 1, x * 0.5

        start = torch.zeros((), dtype=torch.int64)
        return super().body(while_loop(goes_on, halved, (start, x))[1])


class OfTextAlone(Small):
    """The only attention is among tokens that no latents reach."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(1, 5, WIDTH))

    def body(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x + super().body(self.tokens).mean(1, keepdim=True))


class Broken(Small):
    """The graph breaks, and none of the graphs has attention."""

    def body(self, x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x + torch.tanh(x)


class WritesUntraced(OtherMemory):
    """It also writes to a buffer, which a step that reuses would not do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def body(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return super().body(x)


class NamelessClock(Small):
    """What changes at every step has a name that says nothing, and is not embedded."""

    def forward(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return self.last(self.body(self.patch(x) + level[:, None, None]))


REFUSED: dict[str, Case] = {
    "no attention": Case(NoAttention, "No attention was found"),
    "tokens without a batch": Case(NoAttention, "No attention was found", (6, WIDTH)),
    "no layout": Case(NoLayout, "is not known", PICTURE),
    "six dimensions": Case(ManyDimensions, "have 6 dimensions", (2, 1, 1, 3, 2, WIDTH)),
    "other memory": Case(OtherMemory, "gives a tensor other memory"),
    "a vmap that writes": Case(WritingVmap, "calls torch.vmap"),
    "a loop of any length": Case(WhileLoop, "runs torch.while_loop"),
    "attention of text alone": Case(OfTextAlone, "does not read the latents"),
    "several graphs": Case(Broken, "in this forward of"),
}
"""Models whose whole output can be reused."""

WITHOUT_FLOOR: dict[str, Case] = {
    "writes and cannot be traced": Case(WritesUntraced, "gives a tensor other memory"),
    "no timestep": Case(NamelessClock, "No timestep was found", clock="level"),
}
"""Models whose whole output cannot be reused either."""
