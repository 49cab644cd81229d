"""Denoisers that no pass understands: broken into graphs, without attention, behind hooks.

All take ``(hidden_states, timestep, encoder_hidden_states)`` as a loop of ``helpers.latte`` gives
them: latents ``[b, 4, 4, 8, 8]``, one timestep per row, a prompt ``[b, 5, 12]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from helpers.latte import CAPTION_CHANNELS, NUM_CHANNELS, tiny_latte

CPU = torch.device("cpu")
WIDTH = 8


class Denoiser(nn.Module):
    """Embeds latents, timestep and prompt, runs a body over them, and projects back."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(NUM_CHANNELS, WIDTH)
        self.time = nn.Linear(WIDTH, WIDTH)
        self.text = nn.Linear(CAPTION_CHANNELS, WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.last = nn.Linear(WIDTH, NUM_CHANNELS)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        return_dict: bool = True,
    ) -> tuple[torch.Tensor]:
        x = self.inner(hidden_states.movedim(1, -1))
        when = self.time(torch.sin(timestep[:, None] / 100 * torch.arange(1, WIDTH + 1)))
        text = self.text(encoder_hidden_states).mean(1)
        condition = (when + text)[:, None, None, None]
        x = x + self.run(
            self.blocks[0], x, condition
        )  # no loop: Dynamo would run all of it eagerly
        x = x + self.run(self.blocks[1], x, condition)
        return (self.last(x).movedim(-1, 1),)

    def run(self, block: nn.Module, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """One block."""
        return torch.tanh(block(x) * (1 + condition))


class Broken(Denoiser):
    """Every block breaks the graph."""

    def run(self, block: nn.Module, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return super().run(block, x, condition)


class Experts(Denoiser):
    """Every block is run for the tokens that it chooses, whose number depends on values."""

    def run(self, block: nn.Module, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        chosen = (x[..., 0] > 0).nonzero(as_tuple=True)
        y = torch.zeros_like(x)
        y[chosen] = block(x[chosen])
        return torch.tanh(y * (1 + condition))


class Disabled(Denoiser):
    """Every block runs outside of any graph."""

    @torch.compiler.disable
    def run(self, block: nn.Module, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return super().run(block, x, condition)


class Autocast(Denoiser):
    """Every block switches autocast on inside the forward."""

    def run(self, block: nn.Module, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().run(block, x, condition).float()


class Unet(nn.Module):
    """Convolutions over frames as rows of the batch, and a skip around the middle."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Conv2d(NUM_CHANNELS, WIDTH, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.up = nn.Conv2d(WIDTH, NUM_CHANNELS, 3, padding=1)
        self.time = nn.Linear(WIDTH, WIDTH)
        self.text = nn.Linear(CAPTION_CHANNELS, WIDTH)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        return_dict: bool = True,
    ) -> tuple[torch.Tensor]:
        batch, channels, frames, height, width = hidden_states.shape
        x = hidden_states.movedim(2, 1).reshape(-1, channels, height, width)
        when = self.time(torch.sin(timestep[:, None] / 100 * torch.arange(1, WIDTH + 1)))
        condition = when + self.text(encoder_hidden_states).mean(1)
        skip = self.down(x)
        y = torch.tanh(self.middle(skip) * condition.repeat_interleave(frames, 0)[..., None, None])
        y = nn.functional.interpolate(y + skip, scale_factor=2.0)
        return (self.up(y).reshape(batch, frames, channels, height, width).movedim(1, 2),)


def _casting() -> nn.Module:
    model = tiny_latte(depth=1)
    model.enable_layerwise_casting(torch.float32, torch.float32)
    return model


def _offloaded() -> nn.Module:
    model = tiny_latte(depth=1)
    model.enable_group_offload(CPU, CPU, offload_type="leaf_level")
    return model


class Looped(Denoiser):
    """A loop that breaks, so that only what its blocks compute is in graphs."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        return_dict: bool = True,
    ) -> tuple[torch.Tensor]:
        x = self.inner(hidden_states.movedim(1, -1))
        when = self.time(torch.sin(timestep[:, None] / 100 * torch.arange(1, WIDTH + 1)))
        for block in self.blocks:
            x = x + self.run(block, x, when[:, None, None, None])
        return (self.last(x).movedim(-1, 1),)

    def run(self, block: nn.Module, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return super().run(block, x, condition)


ANY: dict[str, Callable[[], Any]] = {
    "graph breaks": Broken,
    "blocks outside of graphs": Disabled,
    "autocast inside": Autocast,
    "a U-Net": Unet,
    "weights cast by hooks": _casting,
}
PARTLY: dict[str, Callable[[], Any]] = {
    "experts": Experts,
    "a loop that breaks": Looped,
    "weights moved by hooks": _offloaded,
}
"""The output is not predicted as a whole: Python code between the graphs computes too, or graphs
of other sizes have predictions of their own."""
