"""A small DiT whose experts run in a loop over counts, as the code of mixtures of experts does.

Its branches have a memory, so the model is the oracle of its compiled form: it repeats what a
branch computed, or goes on along a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, TOKENS, NUM_EXPERTS = 24, 12, 3
TIMESTEPS = torch.arange(1000.0, 200.0, -100.0)


class Branch(nn.Module):
    """A residual branch whose output the oracle repeats or predicts.

    Attributes:
        every: the oracle computes at every so many steps.
        is_line: whether the oracle goes on along a line through the last two outputs.
    """

    every, is_line = 1, False

    def __init__(self) -> None:
        super().__init__()
        self.step: int | None = None  # of the oracle
        self.known: tuple[tuple[int, torch.Tensor], ...] = ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.step is None:
            return self.compute(x)
        if self.step % self.every == 0:
            self.known = (*self.known[-1:], (self.step, self.compute(x)))
        if self.step % self.every == 0 or not self.is_line or len(self.known) < 2:
            return self.known[-1][1]
        (first, one), (second, other) = self.known
        return other + (other - one) * ((self.step - second) / (second - first))


class Attention(Branch):
    """Self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.packed, self.back = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.packed(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return self.back(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Experts(nn.Module):
    """Each token goes to the expert that its gate chooses. The loop reads how many go where."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, NUM_EXPERTS)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(NUM_EXPERTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, chosen = self.gate(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero(as_tuple=True)
            if rows[0].numel():
                out[rows] = expert(x[rows]).tanh() * weight[rows][:, None]
        return out


class Mixture(Branch):
    """Experts in a branch of their own. The module around them is traced."""

    def __init__(self, experts: type[nn.Module] = Experts) -> None:
        super().__init__()
        self.experts = experts()

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        return self.experts(x)


class Dit(nn.Module):
    """Blocks of an attention and of experts, over packed tokens ``[b, s, c]``."""

    def __init__(self, experts: type[nn.Module] = Experts, depth: int = 2) -> None:
        super().__init__()
        self.patch, self.time, self.last = (nn.Linear(n, WIDTH) for n in (4, 8, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.attentions = nn.ModuleList(Attention() for _ in range(depth))
        self.mixtures = nn.ModuleList(Mixture(experts) for _ in range(depth))

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        waves = (timestep[:, None].float() / 100 * torch.arange(8)).sin()
        embedded = self.time(waves.to(self.time.weight.dtype))[:, None]
        x = self.patch(latents)
        for attention, mixture in zip(self.attentions, self.mixtures, strict=True):
            x = x + attention(self.norm(x) + embedded)
            x = x + mixture(self.norm(x) * (1 + embedded))
        return self.last(x)


def make(experts: type[nn.Module] = Experts, dtype: torch.dtype = torch.float32) -> Dit:
    """The model, with weights that depend on nothing else."""
    torch.manual_seed(0)
    return Dit(experts).eval().requires_grad_(False).to(dtype)


def calls(dtype: torch.dtype = torch.float32, tokens: int = TOKENS) -> Iterator[tuple[Any, ...]]:
    """The inputs of all steps."""
    for step, timestep in enumerate(TIMESTEPS):
        generator = torch.Generator().manual_seed(step)
        latents = torch.randn(2, tokens, 4, generator=generator).to(dtype)
        yield latents, timestep.expand(2)


@contextmanager
def as_oracle(
    model: Dit, every: dict[type, int], is_line: bool = False
) -> Iterator[Callable[..., Any]]:
    """The model with its memory: kinds of branches -> compute at every so many steps."""
    branches = [each for each in model.modules() if isinstance(each, Branch)]
    try:
        for branch in branches:
            branch.every, branch.is_line = every.get(type(branch), 1), is_line

        def run(step: int, *inputs: Any) -> torch.Tensor:
            for branch in branches:
                branch.step = step
            return model(*inputs)

        yield run
    finally:
        for branch in branches:
            branch.step, branch.known = None, ()
            del branch.every, branch.is_line


def compiled(model: nn.Module, **options: Any) -> Any:
    """The compiled model, without an inner compiler."""
    options = {"window": (0.0, 1.0), "inner": "eager", **options}
    return torch.compile(model, backend="pab", dynamic=False, options=options)
