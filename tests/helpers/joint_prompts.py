"""A small model with joint attention over tokens and prompts of several lengths."""

from __future__ import annotations

import torch


class TwoPrompts(torch.nn.Module):
    """Joint attention over tokens and one prompt, then over tokens and another one."""

    def __init__(self) -> None:
        super().__init__()
        self.time = torch.nn.Embedding(1000, 16)
        self.qkv = torch.nn.ModuleList(torch.nn.Linear(16, 48) for _ in range(2))
        self.out = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(2))

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, prompts: list[torch.Tensor]
    ) -> torch.Tensor:
        x = hidden_states + self.time(timestep)[:, None]
        for qkv, out, prompt in zip(self.qkv, self.out, prompts, strict=True):
            joint = qkv(torch.cat([x, prompt], 1)).unflatten(2, (3, 4, 4)).permute(2, 0, 3, 1, 4)
            mixed = torch.nn.functional.scaled_dot_product_attention(*joint)
            x = x + out(mixed.transpose(1, 2).flatten(2))[:, : x.shape[1]]
        return x


def two_prompts(*lengths: int) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Inputs with prompts of these lengths; their values do not matter."""
    prompts = [torch.zeros(1, length, 16) for length in lengths]
    return torch.zeros(1, 12, 16), torch.zeros(1, dtype=torch.int64), prompts
