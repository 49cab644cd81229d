"""A DiT whose output shows which step each of its attentions was computed at."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

WIDTH = 8
NUM_TOKENS = 6
NUM_FRAMES = 8
PROMPT_LENGTH = 3


class FuzzDiT(nn.Module):
    """One attention over the tokens and one over the prompt, side by side.

    The sum of both is added to the latents. Each is also a method, so that the oracle can compute
    it for every step, and find in an output which two steps it was made of.
    """

    strength: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.to_q = nn.Linear(WIDTH, WIDTH)
        self.to_kv = nn.Linear(WIDTH, 2 * WIDTH)
        self.to_out = nn.Linear(WIDTH, WIDTH)
        self.time = nn.Linear(1, WIDTH)
        self.register_buffer("strength", torch.ones(WIDTH))

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
    ) -> torch.Tensor:
        """Latents and result ``[batch, tokens, channels]``, timestep ``[batch]``."""
        return latents + self.own(latents, timestep) + self.other(latents, timestep, prompt)

    def own(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Attention of the tokens to each other."""
        q, k, v = self.qkv(self._modulated(latents, timestep)).unsqueeze(1).chunk(3, -1)
        return self.out(scaled_dot_product_attention(q, k, v).squeeze(1)) * self.strength

    def other(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
    ) -> torch.Tensor:
        """Attention of the tokens to the prompt."""
        q = self.to_q(self._modulated(latents, timestep)).unsqueeze(1)
        k, v = self.to_kv(prompt).unsqueeze(1).chunk(2, -1)
        return self.to_out(scaled_dot_product_attention(q, k, v).squeeze(1))

    def _modulated(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        scale = torch.tanh(self.time(timestep.to(latents.dtype)[:, None, None] * 1e-3))
        return latents * (1 + scale)


def drawn() -> FuzzDiT:
    """A model with weights that matter."""
    torch.manual_seed(0)
    model = FuzzDiT().requires_grad_(False).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model
