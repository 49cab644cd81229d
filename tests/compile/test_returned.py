"""What a site caches may be what the model returns: the caller may write to it all the same."""

from __future__ import annotations

import torch
from torch.nn.functional import layer_norm, scaled_dot_product_attention

import pab_compile
from helpers.latte import NUM_CHANNELS, compiled_pab, ddim_timesteps, draw_latents

NUM_STEPS = 6


class EndsInAttention(torch.nn.Module):
    """Tokens of a video attend to one another, and nothing follows."""

    def __init__(self) -> None:
        super().__init__()
        self.project = torch.nn.Linear(NUM_CHANNELS, NUM_CHANNELS)

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        batch, channels, frames, height, width = latents.shape
        tokens = latents.permute(0, 2, 3, 4, 1).reshape(batch, -1, channels)
        tokens = layer_norm(tokens, [channels]) * torch.cos(timestep / 1000)[:, None, None]
        mixed = self.project(scaled_dot_product_attention(tokens, tokens, tokens))
        return mixed.view(batch, frames, height, width, channels).permute(0, 4, 1, 2, 3)


def test_a_caller_that_writes_to_the_output_does_not_write_to_the_cache() -> None:
    compiled = compiled_pab(
        EndsInAttention().requires_grad_(False), ranges={"full": 3}, window=(0.0, 1.0)
    )
    outputs = []
    with torch.no_grad():
        for step, timestep in enumerate(ddim_timesteps(NUM_STEPS)):
            found = compiled(draw_latents(step), timestep=timestep.expand(1))
            outputs.append(found.clone())
            found.zero_()
    assert pab_compile.stats(compiled).reused == {"full": 4}  # type: ignore[arg-type]
    for step, output in enumerate(outputs):
        assert torch.equal(output, outputs[step - step % 3]), step
    assert outputs[0].any() and not torch.equal(outputs[0], outputs[3])
