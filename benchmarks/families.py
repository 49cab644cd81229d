"""Families of models with random weights: narrow members of the sorts of DiT that people run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    FluxTransformer2DModel,
    LatteTransformer3DModel,
    WanTransformer3DModel,
)

HEADS = 4


@dataclass(frozen=True)
class Family:
    """A sort of model, and the inputs of one call of it.

    Attributes:
        build: layers, channels per head -> the model.
        inputs: words of the prompt, height and width of the latents (of a picture: in tokens) ->
            arguments of the forward without the timestep. The latents come first.
    """

    build: Callable[[int, int], torch.nn.Module]
    inputs: Callable[[int, int, int], dict[str, torch.Tensor]]


def make(family: Family, layers: int, head_dim: int) -> torch.nn.Module:
    """The model with random weights, frozen and in evaluation mode."""
    torch.manual_seed(0)
    return family.build(layers, head_dim).eval().requires_grad_(False)


def _latte(layers: int, head_dim: int) -> torch.nn.Module:
    return LatteTransformer3DModel(
        sample_size=16,
        video_length=4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=layers // 2,  # a spatial and a temporal block each
        num_attention_heads=HEADS,
        attention_head_dim=head_dim,
        cross_attention_dim=HEADS * head_dim,
        caption_channels=64,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
    )


def _cogvideox(layers: int, head_dim: int) -> torch.nn.Module:
    return CogVideoXTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=head_dim,
        in_channels=4,
        out_channels=4,
        time_embed_dim=64,
        text_embed_dim=64,
        num_layers=layers,
        sample_width=16,
        sample_height=16,
        sample_frames=13,
        max_text_seq_length=16,
    )


def _wan(layers: int, head_dim: int) -> torch.nn.Module:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=HEADS,
        attention_head_dim=head_dim,
        in_channels=4,
        out_channels=4,
        text_dim=64,
        freq_dim=64,
        ffn_dim=4 * HEADS * head_dim,
        num_layers=layers,
    )


def _flux(layers: int, head_dim: int) -> torch.nn.Module:
    half = head_dim // 2
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=layers // 4,
        num_single_layers=layers - layers // 4,
        attention_head_dim=head_dim,
        num_attention_heads=HEADS,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        guidance_embeds=False,
        axes_dims_rope=(half // 2, half // 2, half),
    )


def _video(words: int, height: int, width: int) -> dict[str, torch.Tensor]:
    """Four channels and four frames, so their order does not matter."""
    return {
        "hidden_states": _noise(1, 4, 4, height, width),
        "encoder_hidden_states": _noise(1, words, 64),
    }


def _picture(words: int, height: int, width: int) -> dict[str, torch.Tensor]:
    places = torch.zeros(height, width, 3)
    places[..., 1], places[..., 2] = torch.arange(height)[:, None], torch.arange(width)[None]
    return {
        "hidden_states": _noise(1, height * width, 16),
        "encoder_hidden_states": _noise(1, words, 64),
        "pooled_projections": _noise(1, 32),
        "img_ids": places.flatten(0, 1),
        "txt_ids": torch.zeros(words, 3),
    }


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


FAMILIES = {
    "Latte": Family(_latte, _video),
    "CogVideoX": Family(_cogvideox, _video),
    "Wan": Family(_wan, _video),
    "Flux": Family(_flux, _picture),
}
"""Name -> factorised video, joint video, full and cross attention, single-stream picture."""
