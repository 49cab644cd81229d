"""Nodes that make what a checkpoint would give: a tiny model with random weights, and its inputs.

``PAB_TESTS`` names the folder of the tests. ``test_comfyui_server.py`` links this folder into a
ComfyUI.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

NAME = "Wan 2.1"


def _real() -> Any:
    sys.path.append(os.environ["PAB_TESTS"])
    from helpers import real_comfy

    return real_comfy


class Tiny:
    """A model, two prompts and empty latents."""

    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING", "LATENT")
    FUNCTION = "make"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Nothing."""
        return {"required": {}}

    def make(self) -> tuple[Any, ...]:
        """All of it."""
        real = _real()
        prompts = (real.prompt(NAME), real.prompt(NAME, seed=50))
        latents = {"samples": real.latents_of(real.MODELS[NAME])}
        return (real.patcher(NAME), *prompts, latents)


class Picture:
    """The first three channels of the first frame, instead of a VAE."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "make"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The latents."""
        return {"required": {"latent": ("LATENT",)}}

    def make(self, latent: dict[str, torch.Tensor]) -> tuple[torch.Tensor]:
        """Rows, columns and colours."""
        frame = latent["samples"][:, :3, 0].movedim(1, -1)
        return (frame.sigmoid().float().cpu(),)


NODE_CLASS_MAPPINGS = {"TinyModel": Tiny, "TinyPicture": Picture}
