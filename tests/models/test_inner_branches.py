"""Residual branches with sums of their own: equal to module hooks, and to eager without reuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention

import pab_compile
from helpers.latte import assert_different, compiled_pab

CHANNELS, STEPS, TEXT = 16, 4, 5


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, 2 * CHANNELS)

    def forward(self, x: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        heads = (self.q(x), *self.kv(read).chunk(2, -1))
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in heads)
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Branch(nn.Module):
    """What a block adds to its stream."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.cross = Attention(), Attention()
        self.norm = nn.LayerNorm(CHANNELS)
        self.up, self.down = nn.Linear(CHANNELS, 2 * CHANNELS), nn.Linear(2 * CHANNELS, CHANNELS)


class NormAfterSum(Branch):
    def forward(self, x: torch.Tensor, emb: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        h = self.norm(x) * emb
        y = self.norm(x + emb * self.attention(h, h)) * (1 + emb)
        return emb * self.down(gelu(self.up(y)))


class TwoKinds(Branch):
    def forward(self, x: torch.Tensor, emb: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        h = self.norm(x) * emb
        return emb * self.down(gelu(self.up(self.attention(h, h) + self.cross(h, text))))


class OneReadsTheOther(Branch):
    def forward(self, x: torch.Tensor, emb: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        h = self.norm(x) * emb
        a = self.attention(h, h)
        return emb * self.down(gelu(self.up(a + self.cross(a, text)))) * (1 + emb)


class Dit(nn.Module):
    def __init__(self, branch: type[Branch]) -> None:
        super().__init__()
        self.patch, self.last = nn.Conv3d(4, CHANNELS, 1), nn.Linear(CHANNELS, 4)
        self.time = nn.Linear(16, CHANNELS)
        self.branches = nn.ModuleList(branch() for _ in range(2))

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
    ) -> torch.Tensor:
        x = self.patch(latents).flatten(2).transpose(1, 2)
        waves = torch.cos(timestep[:, None] / 100 * torch.arange(16)).to(latents.dtype)
        emb = self.time(waves)[:, None]
        for branch in self.branches:
            x = x + branch(x, emb, prompt)
        return self.last(x)


def generate(model: nn.Module, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = [torch.randn(1, 4, 2, 3, 4, generator=generator).to(dtype) for _ in range(STEPS)]
    prompt = torch.randn(1, TEXT, CHANNELS, generator=generator).to(dtype)
    timesteps = torch.linspace(900.0, 300.0, STEPS)
    with torch.no_grad():
        return [model(x, timesteps[s : s + 1], prompt) for s, x in enumerate(latents)]


def hooked(model: Dit, dtype: torch.dtype, computes: tuple[int, ...]) -> list[torch.Tensor]:
    """What the model gives if every branch repeats its last output, except at some steps."""
    handles = []
    for branch in model.branches:
        outputs: list[torch.Tensor] = []

        def hook(_: nn.Module, __: object, output: torch.Tensor, outputs=outputs):  # type: ignore[no-untyped-def]
            step = len(outputs)
            outputs.append(output.clone() if step in computes else outputs[-1])
            return outputs[-1].clone()

        handles.append(branch.register_forward_hook(hook))
    found = generate(model, dtype)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.sample("dtype1-OneReadsTheOther", "dtype0-TwoKinds")
@pytest.mark.parametrize("branch", [NormAfterSum, TwoKinds, OneReadsTheOther])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_branch_is_reused_as_a_whole_bit_for_bit(branch: type, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Dit(branch).to(dtype).eval().requires_grad_(False)
    eager, expected = generate(model, dtype), hooked(model, dtype, (0, 2))
    assert_different(expected[1], eager[1])
    compiled = compiled_pab(model, ranges={}, cut="branch")
    assert all(map(torch.equal, generate(compiled, dtype), eager))
    torch._dynamo.reset()
    options = {"ranges": {"full": 2, "cross": 2}, "window": (0.0, 1.0), "cut": "branch"}
    compiled = compiled_pab(model, **options)
    assert all(map(torch.equal, generate(compiled, dtype), expected))
    assert pab_compile.stats(compiled).reused == {"full": 4}  # type: ignore[arg-type]


def test_a_branch_of_two_kinds_computes_where_the_plan_computes_one_of_them() -> None:
    torch.manual_seed(0)
    model = Dit(TwoKinds).eval().requires_grad_(False)
    expected = hooked(model, torch.float32, (0, 2, 3))
    options = {"ranges": {"full": 3, "cross": 2}, "window": (0.0, 1.0), "cut": "branch"}
    compiled = compiled_pab(model, **options)
    assert all(map(torch.equal, generate(compiled, torch.float32), expected))
    torch._dynamo.reset()
    compiled = compiled_pab(model, **{**options, "ranges": {"full": 3}})
    eager = generate(model, torch.float32)
    assert all(map(torch.equal, generate(compiled, torch.float32), eager))
