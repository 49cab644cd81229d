"""Latents in every layout: to tokens, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .spec import Spec

CHANNELS = 4
Tensor = torch.Tensor
_TO_VIDEO = {
    "b c t h w": (0, 1, 2, 3, 4),
    "b t c h w": (0, 2, 1, 3, 4),
    "b t h w c": (0, 4, 1, 2, 3),
}
_FROM_VIDEO = {
    "b c t h w": (0, 1, 2, 3, 4),
    "b t c h w": (0, 2, 1, 3, 4),
    "b t h w c": (0, 2, 3, 4, 1),
}


def latents_shape(spec: Spec, batch: int) -> tuple[int, ...]:
    """The shape of the latents; of one entry where they are a list."""
    size = {"b": batch, "c": CHANNELS, "t": spec.frames, "s": spec.num_tokens}
    size |= {"h": spec.height * spec.patch, "w": spec.width * spec.patch}
    return tuple(size[axis] for axis in spec.layout.removeprefix("list of ").split())


class ToTokens(nn.Module):
    """Patches of latents as tokens ``[b, t, h, w, c]``; packed latents ``[b, s, c]``.

    Args:
        spec: of the model.
        is_double: whether other latents stand beside them, as further channels.
    """

    def __init__(self, spec: Spec, is_double: bool) -> None:
        super().__init__()
        self.spec, patch = spec, spec.patch
        self.channels = CHANNELS * (2 if is_double else 1)
        self.project: nn.Module = nn.Linear(self.channels * patch**2, spec.channels)
        if spec.patchify == "convolution" and spec.is_picture:
            self.project = nn.Conv2d(self.channels, spec.channels, patch, patch)
        elif spec.patchify == "convolution" and spec.layout != "b s c":
            size = (1, patch, patch)
            self.project = nn.Conv3d(self.channels, spec.channels, size, size)

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """Of the latents in their layout."""
        spec = self.spec
        if spec.layout == "b s c":
            assert isinstance(x, Tensor)
            return self.project(x)
        if not isinstance(x, Tensor):
            if spec.patchify in ("convolution", "unfold"):
                return torch.cat([self._of_video(video[None]) for video in x])
            x = torch.stack(list(x))
        elif spec.is_picture:
            x = x if spec.layout == "b c h w" else x.permute(0, 3, 1, 2)
            return self._of_pictures(x)[:, None]
        else:
            x = x.permute(_TO_VIDEO[spec.layout])
        return self._of_video(x)

    def _of_video(self, x: Tensor) -> Tensor:
        if self.spec.patchify == "convolution":
            return self.project(x).permute(0, 2, 3, 4, 1)
        frames = x.transpose(1, 2)
        return self._of_pictures(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def _of_pictures(self, x: Tensor) -> Tensor:
        spec, patch = self.spec, self.spec.patch
        if spec.patchify == "convolution":
            return self.project(x).permute(0, 2, 3, 1)
        if spec.patchify == "unshuffle":
            return self.project(F.pixel_unshuffle(x, patch).permute(0, 2, 3, 1))
        if spec.patchify == "unfold":
            rows = F.unfold(x, patch, stride=patch).transpose(1, 2)
            return self.project(rows.unflatten(1, (spec.height, spec.width)))
        x = x.reshape(len(x), self.channels, spec.height, patch, spec.width, patch)
        return self.project(x.permute(0, 2, 4, 1, 3, 5).flatten(3))


class FromTokens(nn.Module):
    """Tokens as latents in their layout; with a variance if the model has one."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.out = CHANNELS * (2 if spec.sigma else 1)
        self.project = nn.Linear(spec.channels, self.out * spec.patch**2)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Of tokens ``[b, s, c]``."""
        spec, patch = self.spec, self.spec.patch
        x = self.project(x)
        if spec.layout == "b s c":
            return x
        x = x.unflatten(1, (spec.frames, spec.height, spec.width))
        if spec.patchify == "unshuffle":
            x = F.pixel_shuffle(x.flatten(0, 1).permute(0, 3, 1, 2), patch)
        elif spec.patchify == "unfold":
            size = (spec.height * patch, spec.width * patch)
            x = F.fold(x.flatten(0, 1).flatten(1, 2).transpose(1, 2), size, patch, stride=patch)
        else:
            x = x.flatten(0, 1).unflatten(-1, (self.out, patch, patch))
            x = x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        if spec.is_picture:
            return x if spec.layout == "b c h w" else x.permute(0, 2, 3, 1)
        x = x.unflatten(0, (-1, spec.frames)).transpose(1, 2)
        if spec.layout.startswith("list"):
            return list(x)
        return x.permute(_FROM_VIDEO[spec.layout])
