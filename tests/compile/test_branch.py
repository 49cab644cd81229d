"""Whole residual branches over whole generations: what hooks keep of each, in any dtype."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import pab_compile
from helpers.latte import Moment, assert_different, assert_same, compiled_pab
from helpers.oracle import Broadcast, Rule

WIDTH, NUM_STEPS = 16, 7
LATENTS = (1, 4, 3, 4, 6)
TABLE = torch.linspace(950, 50, NUM_STEPS)


class Branch(torch.nn.Module):
    """What a block adds: attention and MLP side by side, in one of several ways.

    Args:
        how: ``fused`` (one projection in, one out), ``parallel`` (added), ``sandwich`` (a norm
            after both) or ``post-norm`` (attention alone, with a norm after it).
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.after = torch.nn.LayerNorm(WIDTH)
        self.both_in = torch.nn.Linear(WIDTH, 7 * WIDTH)
        self.both_out = torch.nn.Linear(5 * WIDTH, WIDTH)
        self.out = torch.nn.Linear(WIDTH, WIDTH)
        self.down = torch.nn.Linear(4 * WIDTH, WIDTH)
        self.gate = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        qkv, wide = self.both_in(self.norm(x)).split([3 * WIDTH, 4 * WIDTH], -1)
        q, k, v = qkv.unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        if self.how == "post-norm":
            return self.after(self.out(attended)) * self.gate(emb)[:, None]
        if self.how == "parallel":
            both = self.out(attended) + self.down(F.gelu(wide))
        else:
            both = self.both_out(torch.cat([attended, F.gelu(wide)], -1))
        return self.gate(emb)[:, None] * (self.after(both) if self.how == "sandwich" else both)


class Dit(torch.nn.Module):
    """Two blocks that each add one branch to the stream."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.embed, self.last = torch.nn.Linear(4, WIDTH), torch.nn.Linear(WIDTH, 4)
        self.time = torch.nn.Linear(WIDTH, WIDTH)
        self.branches = torch.nn.ModuleList(Branch(how) for _ in range(2))

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        angles = timestep[:, None].float() / 100 * torch.arange(WIDTH)
        emb = self.time(torch.cos(angles).to(x.dtype))
        h = self.embed(x.flatten(2).mT)
        for branch in self.branches:
            h = h + branch(h, emb)
        return self.last(F.layer_norm(h, [WIDTH])).mT.unflatten(-1, x.shape[2:])


class Hooked(Broadcast):
    """A model whose branch modules keep what they return, or return what they kept."""

    def __init__(self, model: Dit, rule: Rule) -> None:
        super().__init__(rule)
        self._model = model
        for index, module in enumerate(model.branches):
            module.forward = functools.partial(self._ask, str(index), module.forward)

    def _ask(self, name: str, compute: Callable[..., Any], *inputs: Any) -> torch.Tensor:
        return self.branch(name, "full", lambda: compute(*inputs))

    def __call__(self, step: int, *inputs: torch.Tensor) -> torch.Tensor:
        self.begin(Moment(step, NUM_STEPS, float(inputs[1]), ""))
        return self._model(*inputs)

    def remove(self) -> None:
        """Let the model be as it was."""
        for module in self._model.branches:
            del module.forward


def made(how: str, dtype: torch.dtype) -> Dit:
    torch.manual_seed(0)
    return Dit(how).requires_grad_(False).to(dtype)


def inputs_at(step: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    start, end = (torch.randn(LATENTS, generator=generator) for _ in range(2))
    return torch.lerp(start, end, step / NUM_STEPS).to(dtype), TABLE[step : step + 1]


def generate(call: Callable[..., torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    outputs = [call(step, *inputs_at(step, dtype)) for step in range(NUM_STEPS)]
    return torch.stack(outputs).float()


@pytest.mark.sample("fused-bf16")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("how", ["fused", "parallel", "sandwich", "post-norm"])
def test_a_generation_equals_hooks_on_the_branches(
    how: str, dtype: torch.dtype, runs_all: bool
) -> None:
    model = made(how, dtype)
    eager = generate(lambda _, *inputs: model(*inputs), dtype)
    every = itertools.product((0, 1), (False, True))
    for order, coalesce in every if runs_all else ((0, False), (1, True)):
        rule = Rule({"full": 2}, (0.0, 1.0), order)
        oracle = Hooked(model, rule)
        expected = generate(oracle, dtype)
        oracle.remove()
        compiled = compiled_pab(model, cut="branch", coalesce=coalesce, **rule.options())
        actual = generate(lambda _, *inputs, call=compiled: call(*inputs), dtype)
        tolerance = 1e-5 if dtype == torch.float32 else 4e-2 if order or coalesce else 0
        assert_different(eager, expected, 5e-2)
        assert_same(actual, expected, tolerance)
        stats = pab_compile.stats(compiled)  # type: ignore[arg-type]
        assert stats.reused == oracle.reused() == {"full": 6}
        found = pab_compile.explain(compiled)
        assert sum(site.flops for site in found.sites) > 0.9 * found.total_flops
        said = {site.branch.partition(" FLOPs")[0] for site in found.sites}
        assert all(one.startswith("holds also: an MLP of ") for one in said) or how == "post-norm"
        assert ("Residual branches:\n  2 like branches.0" in str(found)) == (how != "post-norm")
