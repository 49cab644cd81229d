"""Pipelines that are given pictures, or the residuals of a second model."""

from __future__ import annotations

from typing import Any
from unittest import mock

import diffusers
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
from PIL import Image

from dits.build import build
from dits.catalogue import CATALOGUE
from dits.spec import Dit

from .case import Case, embeddings, masks, noise
from .parts import TWO, VIDEO, Autoencoder, Encoder, Pictures, bare, flow, hunyuan, pooled, unipc


def _wan_image(transformer: torch.nn.Module, **parts: Any) -> Any:
    """Wan 2.2 TI2V: the tokens of the given picture stand at timestep 0."""
    vae = diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return bare(
        diffusers.WanImageToVideoPipeline,
        unipc,
        *("image_encoder", "image_processor", "transformer_2"),
        expand_timesteps=True,
    )(transformer, vae=vae, **parts)


class _TwoPictures(Case):
    """A pipeline of Qwen-Image that edits two pictures, which it makes small."""

    def generate(self, *args: Any, **changes: Any) -> torch.Tensor:
        """Latents of a picture."""
        sizes = {"VAE_IMAGE_SIZE": 64 * 64, "CONDITION_IMAGE_SIZE": 32 * 32}
        with mock.patch.multiple(pipeline_qwenimage_edit_plus, **sizes):
            return super().generate(*args, **changes)


def _two_pictures() -> dict[str, Any]:
    mask = torch.ones(1, 7, dtype=torch.bool)
    return {
        "image": [Image.new("RGB", (width, 64), (90, 20, 200)) for width in (96, 64)],
        "height": 64,
        "width": 96,
        **embeddings(12),
        "prompt_embeds_mask": mask,
        "negative_prompt_embeds_mask": mask,
        "true_cfg_scale": 3.0,
    }


class _Sections(Case):
    """A pipeline that makes a video section by section, each from those before."""

    def generate(self, *args: Any, **changes: Any) -> torch.Tensor:
        """Latents of all sections."""
        pipe = diffusers.HunyuanVideoFramepackPipeline
        with mock.patch.object(pipe, "encode_image", lambda *_, **__: noise(1, 5, 15, seed=8)):
            *_, whole = super().generate(*args, **changes)
        return whole


def _ltx2_image_to_video(transformer: torch.nn.Module, **parts: Any) -> Any:
    return bare(
        diffusers.LTX2ImageToVideoPipeline,
        flow(use_dynamic_shifting=True),
        "vocoder",
        vae=Autoencoder(4, spatial_compression_ratio=32, temporal_compression_ratio=8),
        audio_vae=Autoencoder(
            5,
            mel_bins=4,
            sample_rate=16000,
            mel_hop_length=160,
            mel_compression_ratio=4,
            temporal_compression_ratio=4,
        ),
        # In the place of what makes the prompts of the video and of the sound.
        connectors=lambda prompt, mask, **_: (prompt, prompt.flip(1), mask),
    )(transformer, **parts)


def _ltx2_image() -> dict[str, Any]:
    return {
        "height": 128,
        "width": 192,
        "num_frames": 17,
        "latents": noise(1, 4, 3, 4, 6, seed=5),
        **embeddings(14),
        **masks(),
        "stg_scale": 0.0,
        "modality_scale": 1.0,
        "audio_stg_scale": 0.0,
        "audio_modality_scale": 1.0,
    }


def _flux_controlnet(transformer: torch.nn.Module, **parts: Any) -> Any:
    """A pipeline of Flux whose second model sees a picture and returns residuals."""
    own = {"patch_size": 2, "conditioning_embedding_channels": 1, "num_layers": 1}
    dit = CATALOGUE["flux"]
    config = {**dit.config, **own, "num_single_layers": 1}
    controlnet = build(Dit(**{**vars(dit), "cls": "FluxControlNetModel", "config": config}))
    make = bare(
        diffusers.FluxControlNetPipeline,
        flow(3.0, use_dynamic_shifting=True),
        *TWO,
        vae=Encoder(),
        controlnet=controlnet,
    )
    return make(transformer, **parts)


class _Fading(Case):
    """A pipeline of Wan with a control video, whose strength the caller lowers at every step."""

    def generate(self, pipe: Any, num_steps: int, seed: int = 5, **changes: Any) -> torch.Tensor:
        """Latents of a video."""
        strength = torch.ones(2)
        end_step = changes.pop("callback_on_step_end", lambda *args: args[-1])

        def fade(*args: Any) -> Any:
            strength.mul_(0.8)
            return end_step(*args)

        return super().generate(
            pipe, num_steps, seed, conditioning_scale=strength, callback_on_step_end=fade, **changes
        )


FROM_PICTURES = (
    Case(
        "Wan 2.2, image to video",
        "wan",
        _wan_image,
        lambda: {**VIDEO, **embeddings(20), "image": Image.new("RGB", (96, 64), (90, 20, 200))},
        calls=2,
    ),
    Case(
        "LTX, image to video",
        "ltx",
        bare(diffusers.LTXImageToVideoPipeline, flow(use_dynamic_shifting=True)),
        lambda: {
            "height": 128,
            "width": 192,
            "num_frames": 17,
            "latents": noise(1, 3 * 4 * 6, 4, seed=5),
            **embeddings(14),
            **masks(dtype=torch.bool),
        },
        in_suite=False,
    ),
    Case(
        "LTX-2, image to video",
        "ltx2",
        _ltx2_image_to_video,
        _ltx2_image,
        in_suite=False,
    ),
    Case(
        "Flux ControlNet",
        "flux",
        _flux_controlnet,
        lambda: {
            **{k: v for k, v in pooled(12, 10).items() if not k.startswith("negative")},
            "control_image": noise(1, 3, 64, 96, seed=6),
        },
        output="images",
        stepping=("controlnet_block_samples", "controlnet_single_block_samples"),
    ),
    _Fading(
        "Wan VACE, fading strength",
        "wan_vace",
        bare(diffusers.WanVACEPipeline, unipc, vae=Encoder()),
        lambda: {**VIDEO, **embeddings(20)},
        calls=2,
        config={"vace_in_channels": 72},
        stepping=("control_hidden_states_scale",),
    ),
    _TwoPictures(
        "Qwen-Image, two pictures edited",
        "qwen_image",
        bare(
            diffusers.QwenImageEditPlusPipeline,
            flow(use_dynamic_shifting=True),
            "processor",
            vae=Pictures(
                1,
                z_dim=1,
                latents_mean=[0.0],
                latents_std=[1.0],
                temperal_downsample=(False, True, True),
            ),
        ),
        _two_pictures,
        calls=2,
        output="images",
    ),
    _Sections(
        "FramePack",
        "hunyuan_video_framepack",
        bare(
            diffusers.HunyuanVideoFramepackPipeline,
            flow(use_dynamic_shifting=True),
            *TWO,
            "image_encoder",
            "feature_extractor",
            vae=Pictures(4, spatial_compression_ratio=8, temporal_compression_ratio=4),
        ),
        lambda: {
            **hunyuan(),
            "num_frames": 17,
            "latent_window_size": 3,
            "image": noise(1, 3, 64, 96, seed=6).sigmoid(),
            "sampling_type": "vanilla",
        },
        generations=2,
        in_suite=False,
    ),
)
