"""Blocks of two streams."""

from __future__ import annotations

import torch
from torch import nn

from .attention import Attention
from .blocks import Branch, Given, Modulation, joint_of
from .parts import Mlp
from .spec import Spec

Tensor = torch.Tensor


class DualBlock(nn.Module):
    """Video and text as two streams with projections of their own and one attention."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec, width = spec, spec.channels
        self.modulations = nn.ModuleList(Modulation(spec, 2) for _ in range(2))
        self.attentions = nn.ModuleList(Attention(spec, True) for _ in range(2))
        self.outs = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.branch = Branch(spec, "joint", streams=2)
        self.mlps = nn.ModuleList(Mlp(spec) for _ in range(2))
        self.mlp_branches = nn.ModuleList(Branch(spec, "mlp") for _ in range(2))

    def forward(self, x: Tensor, text: Tensor, given: Given) -> tuple[Tensor, Tensor]:
        """Of both streams, ``[b, tokens, c]``."""
        of_video = self.modulations[0](given.emb, given.shared, x.shape)
        emb, shared = given.for_text(given.emb, 0), given.for_text(given.shared, 0)
        of_text = self.modulations[1](emb, shared, text.shape)
        streams = self.branch(
            [x, text], [of_video[0], of_text[0]], lambda h: self._mixed(h[0], h[1], given)
        )
        rows = zip(streams, self.mlp_branches, self.mlps, (of_video, of_text), strict=True)
        x, text = (
            branch([y], [modulated[1]], lambda h, mlp=mlp: [mlp(h[0])])[0]
            for y, branch, mlp, modulated in rows
        )
        return x, text

    def _mixed(self, x: Tensor, text: Tensor, given: Given) -> list[Tensor]:
        length = text.shape[1]
        if self.spec.core == "module":
            both = torch.cat([text, x], 1)
            out = self.attentions[0](both, both, *joint_of(self.spec, given))
        else:
            parts = [
                attend.heads(y, y) for attend, y in zip(self.attentions, (x, text), strict=True)
            ]
            joined = [torch.cat([t, v], -2) for v, t in zip(*parts, strict=True)]
            out = self.attentions[0].mix(*joined, *joint_of(self.spec, given))
        return [self.outs[0](out[:, length:]), self.outs[1](out[:, :length])]
