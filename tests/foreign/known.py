"""Foreign models that Dynamo follows for this backend only, or whose numbers it knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .base import Foreign
from .broken import LoopInForward, ReadGrids, SharedFrequencies


class GridsOfSizes(ReadGrids):
    """The grid of each video is made of its sizes."""

    def inputs(self, step: int, num_steps: int) -> dict[str, Any]:
        given = super().inputs(step, num_steps)
        del given["grids"]
        return given

    def forward(  # type: ignore[override]
        self, x: Sequence[torch.Tensor], timestep: torch.Tensor, context: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        grids = torch.stack([torch.tensor(video.shape[1:]) for video in x])
        (first, *others) = super().forward(x, timestep, context, grids)
        sizes: Any = grids[0]
        return [first.view(first.shape[0], *sizes), *others]


class LoopOverBlocks(GridsOfSizes, LoopInForward):  # type: ignore[override]
    """... and the loop over blocks stands in the forward, which autocast casts in part."""

    def block(self, number: int, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            x = x * 1.0
        return super().block(number, x, text)


class OneTurnForAll(GridsOfSizes, SharedFrequencies):
    """... and the frequencies are split once per layer."""


class CutToLengths(GridsOfSizes):
    """Keys are cut to lengths that are elements of a tensor, and packed."""

    ROOM = LoopInForward.ROOM

    def self_attention(self, number: int, x: torch.Tensor) -> torch.Tensor:
        attention: Any = self.attentions[2 * number]
        q, k, v = attention.heads(x, x)
        lengths = torch.tensor([k.shape[2]] * len(k), dtype=torch.int32)
        k, v = (torch.stack([t[:, :n] for t, n in zip(y, lengths, strict=True)]) for y in (k, v))
        return attention.back(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ChosenKernels(Foreign):
    """Self-attention states its kernel, and cross-attention does so in the deprecated way."""

    def self_attention(self, number: int, x: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return super().self_attention(number, x)

    def cross_attention(self, number: int, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        with torch.backends.cuda.sdp_kernel(enable_flash=False, enable_mem_efficient=False):
            return super().cross_attention(number, x, text)


KNOWN: dict[str, Callable[[], Foreign]] = {
    "grids of sizes": GridsOfSizes,
    "grids of sizes, a loop in the forward": LoopOverBlocks,
    "grids of sizes, one turn for all": OneTurnForAll,
    "keys are cut to lengths": CutToLengths,
    "kernels are chosen": ChosenKernels,
}
