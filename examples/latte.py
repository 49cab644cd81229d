"""Latte at reduced size, sampled as published, with the published broadcast.

    python examples/latte.py
    python examples/latte.py --inner inductor

Random weights and a small video, but the published 50 DDIM steps, prompt and empty prompt in one
batch. Exits with 1 if the numbers of computed steps are not the reference's.
"""

from __future__ import annotations

import sys

import published
import torch
from diffusers import DDIMScheduler, LatteTransformer3DModel

SETTING = published.Setting(
    preset="latte",
    ranges={"spatial": 2, "temporal": 3, "cross": 6},
    window=(100, 800),
    cut="gated",
    steps=50,
    computed={"spatial": 33, "temporal": 27, "cross": 22},
)
GUIDANCE = 7.5


def make_model() -> LatteTransformer3DModel:
    """Latte-1's architecture, small."""
    return LatteTransformer3DModel(
        num_layers=2,
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        sample_size=8,
        patch_size=2,
        video_length=8,
        caption_channels=32,
        cross_attention_dim=64,
        attention_bias=True,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )


@torch.no_grad()
def main(arguments: list[str] | None = None) -> int:
    args = published.parser(__doc__ or "", SETTING).parse_args(arguments)
    torch.manual_seed(0)
    compiled = SETTING.compile(make_model(), args.inner)
    scheduler = DDIMScheduler(timestep_spacing="leading", steps_offset=0, clip_sample=False)
    scheduler.set_timesteps(args.steps)
    prompts, latents = torch.randn(2, 20, 32), torch.randn(1, 4, 8, 8, 8)
    with published.progress("Latte", args.steps) as advance:
        for timestep in scheduler.timesteps:
            both = compiled(
                torch.cat([latents] * 2),
                timestep=timestep.expand(2),
                encoder_hidden_states=prompts,
                return_dict=False,
            )[0]
            noise = published.guided(*both[:, :4].chunk(2), GUIDANCE)
            latents = scheduler.step(noise, timestep, latents, return_dict=False)[0]
            advance()
    return published.report(compiled, SETTING, scheduler.timesteps.tolist())


if __name__ == "__main__":
    sys.exit(main())
