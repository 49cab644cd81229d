"""Foreign models that Dynamo breaks into several graphs, since they read numbers from tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .base import COLUMNS, FRAMES, HEADS, HEIGHT, TEXT, TOKENS, WIDTH, Foreign
from .models import ListLatents
from .packed import LENGTHS

GRID = FRAMES, HEIGHT, COLUMNS


class ReadGrids(ListLatents):
    """Lists of videos; the grid of each is in a tensor, which every attention reads numbers from.

    Videos are padded to one length. The positions of each are made from its own grid. The grids are
    one row: a table would be read in the trace (``dynamo_rules/given_numbers.py``).
    """

    ROOM = TOKENS + 3

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Conv3d(4, WIDTH, 1)

    def inputs(self, step: int, num_steps: int) -> dict[str, Any]:
        return {**super().inputs(step, num_steps), "grids": torch.tensor(GRID * 2)}

    def forward(  # type: ignore[override]
        self,
        x: Sequence[torch.Tensor],
        timestep: torch.Tensor,
        context: Sequence[torch.Tensor],
        grids: torch.Tensor,
    ) -> list[torch.Tensor]:
        rows = [self.embedding(video[None]).flatten(2).transpose(1, 2) for video in x]
        padded = [
            torch.cat([row, row.new_zeros(1, self.ROOM - row.shape[1], WIDTH)], 1) for row in rows
        ]
        self.grids = grids
        text = self.text(torch.stack(list(context)))
        out = self.last(self.blocks(torch.cat(padded) + self.embed(timestep), text))
        return [
            video[: t * h * w].view(t, h, w, 4).permute(3, 0, 1, 2)
            for video, (t, h, w) in zip(out, grids.view(-1, 3).tolist(), strict=True)
        ]

    def self_attention(self, number: int, x: torch.Tensor) -> torch.Tensor:
        attention = self.attentions[2 * number]
        q, k, v = attention.heads(x, x)
        y = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v)
        return attention.back(y.transpose(1, 2).flatten(2))

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        made = []
        for number, (t, h, w) in enumerate(self.grids.view(-1, 3).tolist()):
            length = t * h * w
            pairs = torch.view_as_complex(x[number, :, :length].double().unflatten(-1, (-1, 2)))
            angles = torch.outer(torch.arange(length), 1 / torch.arange(1, 1 + pairs.shape[-1]))
            turn = torch.polar(torch.ones_like(angles), angles).to(torch.complex128)
            turned = torch.view_as_real(pairs * turn).flatten(-2)
            made.append(torch.cat([turned.type_as(x), x[number, :, length:]], 1))
        return torch.stack(made)


class ReadLengths(Foreign):
    """The lengths of prompts are read from their mask, and the prompts packed in one row."""

    def inputs(self, step: int, num_steps: int) -> dict[str, Any]:
        mask = torch.arange(TEXT) < LENGTHS[:, None]
        return {**super().inputs(step, num_steps), "mask": mask.long()}

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        text = self.text(context).masked_select(mask[..., None] != 0).view(1, -1, WIDTH)
        self.lengths = mask.sum(1).tolist()
        return self.last(self.blocks(self.patch(x) + self.embed(timestep), text))

    def cross_attention(self, number: int, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        own = torch.arange(len(x)).repeat_interleave(x.shape[1])
        other = torch.cat([torch.full((n,), i) for i, n in enumerate(self.lengths)])
        packed = x.reshape(1, -1, WIDTH), text
        mask = own[:, None] == other
        return self.attentions[2 * number + 1](*packed, mask).reshape(x.shape)


class ReadLongest(Foreign):
    """Prompts are cut to the longest one, whose length is a number of a tensor."""

    def inputs(self, step: int, num_steps: int) -> dict[str, Any]:
        mask = torch.arange(TEXT) < LENGTHS[:, None]
        return {**super().inputs(step, num_steps), "mask": mask.long()}

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        longest = int(mask.sum(1).max().item())
        self.mask = mask[:, None, None, :longest] > 0
        text = self.text(context[:, :longest])
        return self.last(self.blocks(self.patch(x) + self.embed(timestep), text))

    def cross_attention(self, number: int, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.attentions[2 * number + 1](x, text, self.mask)


class LoopInForward(ReadGrids):
    """The loop over blocks, which reads numbers, stands in the forward itself.

    Dynamo skips a forward that breaks in a loop. Only what it calls is compiled.
    """

    def forward(  # type: ignore[override]
        self,
        x: Sequence[torch.Tensor],
        timestep: torch.Tensor,
        context: Sequence[torch.Tensor],
        grids: torch.Tensor,
    ) -> list[torch.Tensor]:
        tokens = torch.cat([self.embedding(video[None]).flatten(2).transpose(1, 2) for video in x])
        self.grids = grids
        y, text = tokens + self.embed(timestep), self.text(torch.stack(list(context)))
        for number in range(self.DEPTH):
            y = self.block(number, y, text)
        out = self.last(y).transpose(1, 2)
        return [row.unflatten(1, (FRAMES, HEIGHT, COLUMNS)) for row in out]


class SharedFrequencies(LoopInForward):
    """Layers loop over grids whose numbers they read, with frequencies that are made once.

    What is done to the frequencies before the loop is a graph of its own. It runs for the queries
    and for the keys of every layer with the same input.
    """

    def forward(self, *args: Any, **kwargs: Any) -> list[torch.Tensor]:  # type: ignore[override]
        num_pairs = WIDTH // HEADS // 2
        angles = torch.outer(torch.arange(TOKENS), 1 / torch.arange(1, 1 + num_pairs))
        self.frequencies = torch.polar(torch.ones_like(angles), angles)
        return super().forward(*args, **kwargs)

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.frequencies.split([2, WIDTH // HEADS // 2 - 2], 1)
        made = []
        for number, (t, h, w) in enumerate(self.grids.view(-1, 3).tolist()):
            pairs = torch.view_as_complex(x[number, :, : t * h * w].unflatten(-1, (-1, 2)))
            turn = torch.cat([part[: t * h * w] for part in parts], 1)
            made.append(torch.view_as_real(pairs * turn).flatten(-2))
        return torch.stack(made)


class NotCompiled(Foreign):
    """Attention is kept from the compiler."""

    @torch.compiler.disable
    def self_attention(self, number: int, x: torch.Tensor) -> torch.Tensor:
        return self.attentions[2 * number](x, x)


BROKEN: dict[str, Callable[[], Foreign]] = {
    "grids are read": ReadGrids,
    "lengths are read": ReadLengths,
    "the longest length is read": ReadLongest,
    "the forward is not compiled": LoopInForward,
    "a graph runs for queries and keys": SharedFrequencies,
    "attention is not compiled": NotCompiled,
}
