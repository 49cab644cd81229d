"""Small DiTs that each have another difficulty for coalescing, and an oracle of hooks for them.

The output of every module named ``*_branch`` is what one site caches with ``cut="gated"``.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention

WIDTH = 16
FRAMES, HEIGHT, COLUMNS = 3, 4, 5
_SPACE = HEIGHT * COLUMNS


def _norm(x: torch.Tensor) -> torch.Tensor:
    return layer_norm(x, (WIDTH,))


class Attend(nn.Module):
    """Attention from one row of tokens to another. Further tokens join both rows."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.both = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        """Attend ``[..., tokens, channels]`` to ``read``."""
        q = self.query(x).unflatten(-1, (2, -1)).transpose(-2, -3)
        k, v = (y.unflatten(-1, (2, -1)).transpose(-2, -3) for y in self.both(read).chunk(2, -1))
        found = scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2)
        return self.out(found)


class Spatial(Attend):
    """Attention within each frame."""

    def forward(self, x: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        """Attend ``[batch, frames * space, channels]``."""
        frames = x.unflatten(1, (FRAMES, -1)).flatten(0, 1)
        return super().forward(frames, frames).unflatten(0, (-1, FRAMES)).flatten(1, 2)


class Temporal(Attend):
    """Attention along the frames."""

    def forward(self, x: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        """Attend ``[batch, frames * space, channels]``."""
        rows = x.unflatten(1, (FRAMES, -1)).transpose(1, 2).flatten(0, 1)
        found = super().forward(rows, rows).unflatten(0, (-1, _SPACE))
        return found.transpose(1, 2).flatten(1, 2)


class Joint(Attend):
    """Attention over text and video."""

    def forward(self, x: torch.Tensor, text: torch.Tensor, gate: torch.Tensor) -> Any:  # type: ignore[override]
        """What is added to the text and to the video."""
        both = torch.cat([_norm(text), _norm(x)], 1)
        of_text, of_video = super().forward(both, both).split([text.shape[1], x.shape[1]], 1)
        return gate * of_text, gate * of_video


class Mlp(nn.Module):
    """An MLP with its gate."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """Of ``[batch, tokens, channels]``."""
        return gate * self.down(gelu(self.up(_norm(x))))


class DroppedText(nn.Module):
    """Text and video attend together. Only the video is returned, so the last text is not read."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_branch = Joint()
        self.mlp_branch, self.text_mlp_branch = Mlp(), Mlp()

    def forward(self, x: torch.Tensor, text: torch.Tensor, gate: torch.Tensor) -> Any:
        """One block."""
        of_text, of_video = self.attention_branch(x, text, gate)
        x, text = x + of_video, text + of_text
        return x + self.mlp_branch(x, gate), text + self.text_mlp_branch(text, gate)


class AddedBeforeTheGate(nn.Module):
    """Two kinds of attention are added up before the gate, which ends a stretch in every block."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial_branch, self.temporal_branch = Spatial(), Temporal()
        self.mlp_branch = Mlp()

    def forward(self, x: torch.Tensor, text: torch.Tensor, gate: torch.Tensor) -> Any:
        """One block."""
        y = _norm(x)
        x = x + gate * (self.spatial_branch(y, y) + self.temporal_branch(y, y))
        return x + self.mlp_branch(x, gate), text


class ReadBetween(nn.Module):
    """Beside the two kinds, a third attention stays single and reads the stream between MLPs."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial_branch, self.temporal_branch = Spatial(), Temporal()
        self.full_branch, self.out = Attend(), nn.Linear(WIDTH, WIDTH)
        self.mlp_branch = Mlp()

    def forward(self, x: torch.Tensor, text: torch.Tensor, gate: torch.Tensor) -> Any:
        """One block."""
        y = _norm(x)
        both = self.spatial_branch(y, y) + self.temporal_branch(y, y)
        x = x + gate * (self.out(both) + self.full_branch(y, y))
        return x + self.mlp_branch(x, gate), text


class Dit(nn.Module):
    """A DiT of such blocks.

    Args:
        block: the class of its blocks.
        depth: their number.
    """

    def __init__(self, block: type[nn.Module], depth: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.last = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.text, self.time = nn.Linear(6, WIDTH), nn.Linear(8, WIDTH)
        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.requires_grad_(False)

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
    ) -> torch.Tensor:
        """Of latents ``[b, c, t, h, w]``."""
        x, text = self.patch(latents.flatten(2).transpose(1, 2)), self.text(prompt)
        angles = timestep[:, None] / 100 * torch.arange(1, 9, device=latents.device)
        gate = self.time(torch.cos(angles).to(latents.dtype))[:, None]
        for block in self.blocks:
            x, text = block(x, text, gate)
        return self.last(_norm(x)).transpose(1, 2).unflatten(2, (FRAMES, HEIGHT, COLUMNS))


class Hooked:
    """A copy of a model whose branches repeat their last output on steps that reuse."""

    def __init__(self, model: nn.Module, suffix: str = "_branch") -> None:
        self._model = copy.deepcopy(model)
        self._reuses = False
        for name, module in self._model.named_modules():
            if name.endswith(suffix):
                self._hook(module)

    def __call__(self, reuses: bool, **inputs: Any) -> torch.Tensor:
        """Run one step."""
        self._reuses = reuses
        return self._model(**inputs)

    def _hook(self, module: nn.Module) -> None:
        last: list[Any] = []

        def repeat(_: nn.Module, __: Any, output: Any) -> Any:
            if not self._reuses:
                last[:] = [output]
            return last[0]

        module.register_forward_hook(repeat)


def inputs_at(step: int, num_steps: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The inputs of a step. The prompt is the same at every step."""
    noise = torch.Generator().manual_seed(step)
    prompt = torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(99)).to(dtype)
    return {
        "latents": torch.randn(1, 4, FRAMES, HEIGHT, COLUMNS, generator=noise).to(dtype),
        "timestep": torch.linspace(1000, 100, num_steps)[step].expand(1),
        "prompt": prompt,
    }
