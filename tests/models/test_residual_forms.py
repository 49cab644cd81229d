"""Residuals in several spellings and types: equal to module hooks, and to eager without reuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention

import pab_compile
from helpers.latte import assert_different, assert_same, compiled_pab
from helpers.residuals import FORMS, OF_THE_STEP, Form

CHANNELS, STEPS, RANGE = 16, 4, 2
CHOSEN = ["float32 around the sum", "addcmul", "addcmul_", "lerp", "where between sums", "sub"]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(CHANNELS, 2 * CHANNELS), nn.Linear(2 * CHANNELS, CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(gelu(self.up(x)))


class Block(nn.Module):
    """Norms, modulation and gates are float32, whatever the type of the stream."""

    def __init__(self, add: Form) -> None:
        super().__init__()
        self.add, self.parts = add, nn.ModuleList([Attention(), Mlp()])
        self.norm = nn.LayerNorm(CHANNELS, elementwise_affine=False)
        self.table = nn.Parameter(0.3 * torch.randn(1, 6, CHANNELS))

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        table = (self.table + emb.float()).chunk(6, 1)
        for number, part in enumerate(self.parts):
            shift, scale, gate = table[3 * number : 3 * number + 3]
            y = part((self.norm(x.float()) * (1 + scale) + shift).to(emb.dtype))
            x = self.add(x, y, gate, self.table[:, :1, :1] > 0)
        return x


class Dit(nn.Module):
    def __init__(self, add: Form) -> None:
        super().__init__()
        self.patch = nn.Conv3d(4, CHANNELS, (1, 2, 2), (1, 2, 2))
        self.time, self.last = nn.Linear(16, 6 * CHANNELS), nn.Linear(CHANNELS, 4)
        self.blocks = nn.ModuleList(Block(add) for _ in range(2))

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        x = self.patch(latents).flatten(2).transpose(1, 2)
        waves = torch.cos(timestep[:, None] / 100 * torch.arange(16)).to(latents.dtype)
        emb = self.time(waves).unflatten(1, (6, -1))
        for block in self.blocks:
            x = block(x, emb)
        return self.last(x.to(latents.dtype))


def generate(model: nn.Module, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = [torch.randn(1, 4, 2, 4, 4, generator=generator).to(dtype) for _ in range(STEPS)]
    timesteps = torch.linspace(900.0, 300.0, STEPS)
    with torch.no_grad():
        return [model(x, timesteps[step : step + 1]) for step, x in enumerate(latents)]


def hooked(model: Dit, dtype: torch.dtype) -> list[torch.Tensor]:
    """What the model gives if every part repeats its last output at every second call."""
    handles = []
    for block in model.blocks:
        for part in block.parts:
            outputs: list[torch.Tensor] = []

            def hook(_: nn.Module, __: object, output: torch.Tensor, outputs=outputs):  # type: ignore[no-untyped-def]
                outputs.append(output.clone())
                return outputs[(len(outputs) - 1) // RANGE * RANGE].clone()

            handles.append(part.register_forward_hook(hook))
    found = generate(model, dtype)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.sample("float32 around the sum-dtype1")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CHOSEN)
def test_reuse_equals_module_hooks_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Dit({**FORMS, **OF_THE_STEP}[name]).to(dtype).eval().requires_grad_(False)
    eager, expected = generate(model, dtype), hooked(model, dtype)
    assert_different(expected[1], eager[1])
    compiled = compiled_pab(model, ranges={})
    assert all(map(torch.equal, generate(compiled, dtype), eager))
    torch._dynamo.reset()
    compiled = compiled_pab(model, ranges={"full": RANGE, "mlp": RANGE}, window=(0.0, 1.0))
    assert all(map(torch.equal, generate(compiled, dtype), expected))
    assert pab_compile.stats(compiled).reused == {"full": 4, "mlp": 4}  # type: ignore[arg-type]


@pytest.mark.sample("dtype1")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_site_that_multiplies_and_adds_in_one_equals_its_single_sites(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    model = Dit(FORMS["addcmul"]).to(dtype).eval().requires_grad_(False)
    eager, found = generate(model, dtype), []
    for coalesce in (False, True):
        torch._dynamo.reset()
        ranges = {"full": RANGE, "mlp": RANGE}
        options = {"cut": "gated", "coalesce": coalesce, "window": (0.0, 1.0), "ranges": ranges}
        found.append(generate(compiled_pab(model, **options), dtype))
    for step in range(STEPS):
        if step % RANGE:
            assert_different(found[1][step], eager[step], 0.05)
        assert_same(found[1][step], found[0][step], 0.02 if dtype is torch.bfloat16 else 1e-5)
