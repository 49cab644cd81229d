"""Open-Sora 1.2 at reduced size, sampled as published, with the published broadcast.

    python examples/open_sora.py
    python examples/open_sora.py --inner inductor

Random weights and a small video, but the timesteps of 2 s at 480p (51 frames of 480x854): 30 steps
of rectified flow, prompt and empty prompt in one batch. Exits with 1 if the numbers of computed
steps are not the reference's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import published
import torch
from models.open_sora import STDiT3, STDiT3Config

from models import rectified_flow

SETTING = published.Setting(
    preset="open-sora",
    ranges={"spatial": 2, "temporal": 4, "cross": 6},
    window=(450, 930),
    cut="gated",
    steps=30,
    computed={"spatial": 21, "temporal": 17, "cross": 16},
)
SMALL = STDiT3Config(
    hidden_size=64, depth=2, num_heads=4, caption_channels=32, max_prompt_tokens=20
)
GUIDANCE = 7.0


@dataclass(frozen=True)
class Sampling:
    """What one video is made from.

    Attributes:
        table: the timesteps.
        latents: noise `[1, c, t, h, w]`.
        others: what the model is given at every step besides latents and timestep.
    """

    table: torch.Tensor
    latents: torch.Tensor
    others: dict[str, torch.Tensor]

    def inputs(self, latents: torch.Tensor, timestep: torch.Tensor) -> dict[str, torch.Tensor]:
        """Arguments of one call: guidance in one batch."""
        return {"x": torch.cat([latents] * 2), "timestep": timestep.expand(2), **self.others}


def make(num_steps: int, seed: int = 0) -> tuple[STDiT3, Sampling]:
    """The small transformer with random weights, and noise and prompts for it."""
    torch.manual_seed(seed)
    transformer = STDiT3(SMALL).eval().requires_grad_(False)
    prompt = torch.randn(1, 1, SMALL.max_prompt_tokens, SMALL.caption_channels)
    others = {
        "y": torch.cat([prompt, transformer.y_embedder.y_embedding[None, None]]),
        "mask": (torch.arange(SMALL.max_prompt_tokens) < 12)[None],
        "fps": torch.tensor([24.0]),
        "height": torch.tensor([480.0]),
        "width": torch.tensor([854.0]),
    }
    table = rectified_flow.timesteps(num_steps, height=480, width=854, num_frames=51)
    return transformer, Sampling(table, torch.randn(1, SMALL.in_channels, 15, 6, 10), others)


@torch.no_grad()
def generate(
    model: Callable[..., Any], sampling: Sampling, on_step: Callable[[], object] = lambda: None
) -> torch.Tensor:
    """The latents of a video."""
    table, latents = sampling.table, sampling.latents
    for timestep, part in zip(table, rectified_flow.step_sizes(table), strict=True):
        both = model(**sampling.inputs(latents, timestep))
        conditional, unconditional = both.chunk(2, dim=1)[0].chunk(2)
        velocity = published.guided(unconditional, conditional, GUIDANCE)
        latents = latents + part * velocity
        on_step()
    return latents


def main(arguments: list[str] | None = None) -> int:
    args = published.parser(__doc__ or "", SETTING).parse_args(arguments)
    transformer, sampling = make(args.steps)
    compiled = SETTING.compile(transformer, args.inner)
    with published.progress("Open-Sora", args.steps) as advance:
        generate(compiled, sampling, advance)
    # The reference's window looks at whole timesteps in the model's bfloat16.
    return published.report(compiled, SETTING, sampling.table.bfloat16().int().tolist())


if __name__ == "__main__":
    sys.exit(main())
