"""Small DiTs with code that stock torch.compile runs: assertions, checkpoints, packed weights.

Each has a memory in its attentions, which makes it the oracle of its compiled form. They stand in a
file that pytest does not rewrite, so that their assertions reach Dynamo as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

WIDTH, TOKENS, TEXT, NUM_STEPS = 24, 12, 5, 6
RANGES = {"full": 2, "cross": 3}


class Attention(nn.Module):
    """Attention whose output the oracle may repeat."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value, self.back = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.every = every
        self.step: int | None = None  # of the oracle
        self.memory: torch.Tensor | None = None

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.step is not None and self.step % self.every == 0:
            self.memory = self.compute(x, y)
        if self.step is None or self.memory is None:
            return self.compute(x, y)
        return self.memory

    def compute(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        heads = (self.query(x), self.key(y), self.value(y))
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in heads)
        return self.back(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TorchsOwn(Attention):
    """``nn.MultiheadAttention``: torch splits its packed weight between the two inputs."""

    def __init__(self, every: int) -> None:
        super().__init__(every)
        self.whole = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def compute(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.whole(x, y, y, need_weights=False)[0]


class Packed(Attention):
    """One weight for queries, keys and values, split by hand."""

    def __init__(self, every: int) -> None:
        super().__init__(every)
        self.packed = nn.Linear(WIDTH, 3 * WIDTH)

    def compute(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for_query, for_rest = self.packed.weight.split([WIDTH, 2 * WIDTH])
        k, v = F.linear(y, for_rest).chunk(2, -1)
        q = F.linear(x, for_query)
        return self.back(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0])


class PlainView(Attention):
    """The weight as a plain tensor, as weights of GGUF files reach their product."""

    def compute(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        weight = torch.Tensor._make_subclass(torch.Tensor, self.back.weight, False)
        return super().compute(x, y) @ weight.mT


class Dit(nn.Module):
    """Self-attention and cross-attention over packed tokens ``[b, s, c]``."""

    def __init__(self, attention: type[Attention] = Attention) -> None:
        super().__init__()
        self.full, self.cross = attention(RANGES["full"]), attention(RANGES["cross"])
        self.patch, self.time, self.last = (nn.Linear(n, WIDTH) for n in (4, 8, WIDTH))

    def embed(self, timestep: torch.Tensor) -> torch.Tensor:
        waves = (timestep[:, None].float() / 100 * torch.arange(8)).sin()
        return self.time(waves.to(self.time.weight.dtype))[:, None]

    def block(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        x = x + self.full(x, x)
        return x + self.cross(x, context)

    def forward(
        self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor
    ) -> torch.Tensor:
        return self.last(self.block(self.patch(x) + self.embed(timestep), context))


class ChecksPrompt(Dit):
    """An assertion about values that are the same at every step."""

    def block(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        assert context.isfinite().all()
        return super().block(x, context)


class ChecksLatents(Dit):
    """An assertion about values that change at every step."""

    def block(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        torch._assert_async(x.isfinite().all())
        return super().block(x, context)


class Checkpointed(Dit):
    """A block under ``torch.utils.checkpoint``, as training code leaves it on."""

    def forward(
        self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor
    ) -> torch.Tensor:
        x = self.patch(x) + self.embed(timestep)
        return self.last(checkpoint(super().block, x, context, use_reentrant=False))


class NestedRegion(Dit):
    """A block that torch compiles once for all its calls."""

    @torch.compiler.nested_compile_region
    def block(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return super().block(x, context)


class Autocast(Dit):
    """Attention in bfloat16, and the residual stream in the type of the model."""

    def block(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = self.full(x, x)
            with torch.autocast("cpu", enabled=False):
                x = (x.float() + y.float()).type_as(x)
            y = self.cross(x, context)
        return x + y.type_as(x)


class Controlled(Dit):
    """A buffer that the caller writes between two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.control = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("strength", torch.ones(WIDTH))

    def block(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return super().block(x + self.control(self.strength), context)


TRAITS: dict[str, Callable[[], Dit]] = {
    "plain": Dit,
    "an assertion about the prompt": ChecksPrompt,
    "an assertion about the latents": ChecksLatents,
    "a checkpointed block": Checkpointed,
    "a nested compile region": NestedRegion,
    "autocast inside": Autocast,
    "nn.MultiheadAttention": lambda: Dit(TorchsOwn),
    "a packed weight": lambda: Dit(Packed),
    "a plain view of a weight": lambda: Dit(PlainView),
}


def make(trait: str, dtype: torch.dtype = torch.float32) -> Dit:
    torch.manual_seed(0)
    return TRAITS[trait]().eval().requires_grad_(False).to(dtype)


def calls(dtype: torch.dtype = torch.float32) -> Iterator[tuple[torch.Tensor, ...]]:
    """Latents, timestep and prompt of every step of one generation."""
    table = torch.linspace(1000, 100, NUM_STEPS)
    draw = torch.Generator().manual_seed(1)
    context = torch.randn(2, TEXT, WIDTH, generator=draw).to(dtype)
    for step in range(NUM_STEPS):
        x = torch.randn(2, TOKENS, 4, generator=draw).to(dtype)
        yield x, table[step : step + 1].expand(2), context


@contextmanager
def as_oracle(model: Dit, step: int) -> Iterator[None]:
    """The model repeats outputs as the plan says."""
    for attention in (model.full, model.cross):
        attention.step = step
    yield
    for attention in (model.full, model.cross):
        attention.step = None


def forget(model: Dit) -> None:
    """The oracle's cached outputs are void, as after a change of the weights."""
    for attention in (model.full, model.cross):
        attention.memory = None


def compiled(model: Dit, ranges: dict[str, int], **options: Any) -> Any:
    options = {"ranges": ranges, "window": (0.0, 1.0), "inner": "eager", **options}
    return torch.compile(model, backend="pab", options=options)
