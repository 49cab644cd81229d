"""What pipelines are made of beside their transformer, and what they are given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from .case import embeddings, noise

VIDEO = {"height": 64, "width": 96, "num_frames": 9}
TWO = ("text_encoder_2", "tokenizer_2")
THREE = (*TWO, "text_encoder_3", "tokenizer_3")


class AllIsSafe:
    """In the place of a safety checker."""

    def to(self, _: Any) -> None: ...


def bare(cls: Any, scheduler: Any, *missing: str, **others: Any) -> Any:
    """A pipeline of a transformer and a scheduler only."""

    def make(transformer: torch.nn.Module, **parts: Any) -> Any:
        absent = dict.fromkeys(("tokenizer", "text_encoder", "vae", *missing))
        own = {"transformer": transformer, "scheduler": scheduler()}
        given = {**absent, **own, **others, **parts}
        return cls(**given)

    return make


def flow(shift: float = 1.0, **settings: Any) -> Any:
    return lambda: FlowMatchEulerDiscreteScheduler(shift=shift, **settings)


def unipc() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


class Autoencoder(torch.nn.Module):
    """In the place of an autoencoder that is asked only for sizes and means.

    Args:
        channels: of the latents.
        settings: what else is asked for.
    """

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, channels: int, **settings: Any) -> None:
        super().__init__()
        self.latents_mean, self.latents_std = torch.zeros(channels), torch.ones(channels)
        self.config = SimpleNamespace(scaling_factor=1.0, latent_channels=channels, **settings)
        vars(self).update(settings)


class Pictures(Autoencoder):
    """It also encodes, with a latent per 8 times 8 pixels."""

    def encode(self, picture: torch.Tensor) -> Any:
        gray = picture.mean(1, keepdim=True)[..., ::8, ::8]
        latents = gray.repeat(1, self.config.latent_channels, *[1] * (picture.ndim - 2))
        return SimpleNamespace(
            latent_dist=SimpleNamespace(sample=lambda generator: latents, mode=lambda: latents)
        )


class Encoder:
    """In the place of a video encoder: one latent per 4 frames and 8 times 8 pixels."""

    dtype = torch.float32
    temperal_downsample = (False, True, True)
    config = SimpleNamespace(
        block_out_channels=(1,) * 4, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )

    def encode(self, video: torch.Tensor) -> Any:
        pixels = torch.cat([video, video.mean(1, keepdim=True)], 1)[:, :, ::4, ::8, ::8]
        return SimpleNamespace(latents=pixels)


def hunyuan() -> dict[str, Any]:
    return {
        **VIDEO,
        "prompt_embeds": noise(1, 7, 14, seed=3),
        "pooled_prompt_embeds": noise(1, 9, seed=3),
        "prompt_attention_mask": torch.ones(1, 7),
    }


def pooled(channels: int, pooled: int) -> dict[str, Any]:
    return {
        "height": 64,
        "width": 96,
        **embeddings(channels),
        "pooled_prompt_embeds": noise(1, pooled, seed=3),
        "negative_pooled_prompt_embeds": noise(1, pooled, seed=4),
    }
