"""A DiT of your own, accelerated by the one line.

    python examples/your_own_dit.py
    python examples/your_own_dit.py --explain    # only what was recognised; compiles nothing

Nothing here is taken from a library of models: latents are channels-last, the attention is written
out with einsum, blocks fold and unfold axes as they please, and no module bears a telling name.
"""

from __future__ import annotations

import argparse
import time

import torch
from rich.console import Console
from stages import Stages
from torch import nn

import pab_compile

PATCH, CHANNELS, WIDTH, HEADS = 2, 4, 128, 4
FRAMES, HEIGHT, WIDE, WORDS = 8, 16, 24, 7


class Gather(nn.Module):
    """Attention, by hand: `[..., n, c]` looks at `[..., m, c]`."""

    def __init__(self) -> None:
        super().__init__()
        depth = WIDTH // HEADS
        self.into = nn.Parameter(torch.randn(3, WIDTH, HEADS, depth) * WIDTH**-0.5)
        self.back = nn.Parameter(torch.randn(HEADS, depth, WIDTH) * WIDTH**-0.5)

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        q = torch.einsum("...nc,chd->...nhd", x, self.into[0])
        k, v = (torch.einsum("...mc,chd->...mhd", seen, self.into[i]) for i in (1, 2))
        scores = torch.einsum("...nhd,...mhd->...hnm", q, k) / q.shape[-1] ** 0.5
        mixed = torch.einsum("...hnm,...mhd->...nhd", scores.softmax(-1), v)
        return torch.einsum("...nhd,hdc->...nc", mixed, self.back)


class Layer(nn.Module):
    """Three attentions and an MLP, each on a residual branch, three of them gated by the time."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = Gather(), Gather(), Gather()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(4))
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )
        self.gates = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: torch.Tensor, words: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        batch, frames, rows, columns, width = x.shape
        first, second, third = self.gates(time)[:, None, None, None].chunk(3, -1)

        picture = self.norms[0](x).flatten(2, 3).flatten(0, 1)
        x = x + first * self.a(picture, picture).reshape(x.shape)

        line = self.norms[1](x).permute(0, 2, 3, 1, 4).reshape(-1, frames, width)
        moved = self.b(line, line).unflatten(0, (batch, rows, columns))
        x = x + second * moved.movedim(3, 1)

        x = x + self.c(self.norms[2](x).flatten(1, 3), words).view(x.shape)
        return x + third * self.mlp(self.norms[3](x))


class Painter(nn.Module):
    """Predicts the noise in `[batch, frames, height, width, channels]`."""

    def __init__(self, num_layers: int = 4) -> None:
        super().__init__()
        self.patches = nn.Linear(CHANNELS * PATCH**2, WIDTH)
        self.place = nn.Parameter(torch.randn(FRAMES, HEIGHT // PATCH, WIDE // PATCH, WIDTH) * 0.1)
        self.words = nn.Linear(32, WIDTH)
        self.time = nn.Sequential(nn.Linear(64, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.layers = nn.ModuleList(Layer() for _ in range(num_layers))
        self.out = nn.Linear(WIDTH, CHANNELS * PATCH**2)

    def forward(self, x: torch.Tensor, t: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        batch, frames, height, width, channels = x.shape
        cells = x.view(batch, frames, height // PATCH, PATCH, width // PATCH, PATCH, channels)
        h = self.patches(cells.transpose(3, 4).flatten(4)) + self.place
        angles = t[:, None] * torch.exp(-torch.arange(32, device=t.device) * 0.3)
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        words = self.words(prompt)
        for layer in self.layers:
            h = layer(h, words, time)
        patches = self.out(h).unflatten(-1, (PATCH, PATCH, channels))
        return patches.transpose(3, 4).reshape(x.shape)


def make_inputs(batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(batch, FRAMES, HEIGHT, WIDE, CHANNELS, generator=generator),
        "t": torch.full((batch,), 999.0),
        "prompt": torch.randn(batch, WORDS, 32, generator=generator),
    }


@torch.no_grad()
def generate(model: nn.Module, num_steps: int = 30) -> torch.Tensor:
    """Samples with Euler steps of a rectified flow."""
    inputs = make_inputs()
    x, prompt = inputs["x"], inputs["prompt"]
    timesteps = torch.linspace(1000, 1000 / num_steps, num_steps)
    for t in timesteps:
        x = x - model(x=x, t=t.expand(len(x)), prompt=prompt) / num_steps
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--explain", action="store_true", help="print what was recognised")
    parser.add_argument("--rounds", type=int, default=3, help="timed generations of each variant")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = Painter().eval().requires_grad_(False)
    print(pab_compile.explain(model, **make_inputs()))
    if args.explain:
        return

    fast = torch.compile(model, backend="pab")  # the one line

    variants = {"eager": model, "torch.compile": torch.compile(model), 'backend="pab"': fast}
    results: dict[str, torch.Tensor] = {}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    with Stages(Console(), len(variants) + args.rounds) as stages:
        for name, call in variants.items():
            with stages.stage(f"first generation: {name}"):
                results[name] = generate(call)
        for turn in range(args.rounds):
            with stages.stage(f"round {turn + 1} of {args.rounds}", len(variants)) as advance:
                for name, call in variants.items():
                    start = time.perf_counter()
                    generate(call)
                    seconds[name].append(time.perf_counter() - start)
                    advance()
    print(pab_compile.stats(fast))
    for name, result in results.items():
        speed = sorted(a / b for a, b in zip(seconds["eager"], seconds[name], strict=True))
        error = float((result - results["eager"]).norm() / results["eager"].norm())
        print(f"{name:14} {speed[len(speed) // 2]:.2f}x eager, relative distance {error:.1e}")


if __name__ == "__main__":
    main()
