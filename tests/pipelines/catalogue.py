"""The pipelines that are run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import diffusers
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
from PIL import Image

from dits.build import build
from dits.catalogue import CATALOGUE
from dits.spec import Dit

from .case import Case, embeddings, masks, noise

VIDEO = {"height": 64, "width": 96, "num_frames": 9}


class _AllIsSafe:
    """In the place of a safety checker."""

    def to(self, _: Any) -> None: ...


def _bare(cls: Any, scheduler: Any, *missing: str, **others: Any) -> Any:
    """A pipeline of a transformer and a scheduler only."""

    def make(transformer: torch.nn.Module, **parts: Any) -> Any:
        absent = dict.fromkeys(("tokenizer", "text_encoder", "vae", *missing))
        own = {"transformer": transformer, "scheduler": scheduler()}
        given = {**absent, **own, **others, **parts}
        return cls(**given)

    return make


def _flow(shift: float = 1.0, **settings: Any) -> Any:
    return lambda: FlowMatchEulerDiscreteScheduler(shift=shift, **settings)


def _unipc() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


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
    return _bare(
        diffusers.WanImageToVideoPipeline,
        _unipc,
        *("image_encoder", "image_processor", "transformer_2"),
        expand_timesteps=True,
    )(transformer, vae=vae, **parts)


class _Autoencoder(torch.nn.Module):
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


class _Pictures(_Autoencoder):
    """It also encodes, with a latent per 8 times 8 pixels."""

    def encode(self, picture: torch.Tensor) -> Any:
        gray = picture.mean(1, keepdim=True)[..., ::8, ::8]
        latents = gray.repeat(1, self.config.latent_channels, *[1] * (picture.ndim - 2))
        return SimpleNamespace(
            latent_dist=SimpleNamespace(sample=lambda generator: latents, mode=lambda: latents)
        )


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
    return _bare(
        diffusers.LTX2ImageToVideoPipeline,
        _flow(use_dynamic_shifting=True),
        "vocoder",
        vae=_Autoencoder(4, spatial_compression_ratio=32, temporal_compression_ratio=8),
        audio_vae=_Autoencoder(
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


_TWO = ("text_encoder_2", "tokenizer_2")
_THREE = (*_TWO, "text_encoder_3", "tokenizer_3")
_WAN = _bare(diffusers.WanPipeline, _unipc)


def _hunyuan() -> dict[str, Any]:
    return {
        **VIDEO,
        "prompt_embeds": noise(1, 7, 14, seed=3),
        "pooled_prompt_embeds": noise(1, 9, seed=3),
        "prompt_attention_mask": torch.ones(1, 7),
    }


def _hunyuan_true() -> dict[str, Any]:
    return {
        **_hunyuan(),
        "true_cfg_scale": 4.0,
        "negative_prompt_embeds": noise(1, 7, 14, seed=4),
        "negative_pooled_prompt_embeds": noise(1, 9, seed=4),
        "negative_prompt_attention_mask": torch.ones(1, 7),
    }


def _pooled(channels: int, pooled: int) -> dict[str, Any]:
    return {
        "height": 64,
        "width": 96,
        **embeddings(channels),
        "pooled_prompt_embeds": noise(1, pooled, seed=3),
        "negative_pooled_prompt_embeds": noise(1, pooled, seed=4),
    }


class _Encoder:
    """In the place of a video encoder: one latent per 4 frames and 8 times 8 pixels."""

    dtype = torch.float32
    temperal_downsample = (False, True, True)
    config = SimpleNamespace(
        block_out_channels=(1,) * 4, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )

    def encode(self, video: torch.Tensor) -> Any:
        pixels = torch.cat([video, video.mean(1, keepdim=True)], 1)[:, :, ::4, ::8, ::8]
        return SimpleNamespace(latents=pixels)


def _flux_controlnet(transformer: torch.nn.Module, **parts: Any) -> Any:
    """A pipeline of Flux whose second model sees a picture and returns residuals."""
    own = {"patch_size": 2, "conditioning_embedding_channels": 1, "num_layers": 1}
    dit = CATALOGUE["flux"]
    config = {**dit.config, **own, "num_single_layers": 1}
    controlnet = build(Dit(**{**vars(dit), "cls": "FluxControlNetModel", "config": config}))
    make = _bare(
        diffusers.FluxControlNetPipeline,
        _flow(3.0, use_dynamic_shifting=True),
        *_TWO,
        vae=_Encoder(),
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


CASES = {
    case.name: case
    for case in (
        Case(
            "Latte",
            "latte",
            _bare(diffusers.LattePipeline, DDIMScheduler),
            lambda: {
                "height": 64,
                "width": 96,
                "video_length": 3,
                **embeddings(10),
                "negative_prompt": None,
                "clean_caption": False,
            },
        ),
        Case(
            "CogVideoX",
            "cogvideox",
            _bare(diffusers.CogVideoXPipeline, CogVideoXDDIMScheduler),
            lambda: {**VIDEO, **embeddings(10)},
        ),
        Case("Wan", "wan", _WAN, lambda: {**VIDEO, **embeddings(20)}, calls=2),
        Case(
            "Wan, no guidance",
            "wan",
            _WAN,
            lambda: {**VIDEO, **embeddings(20), "guidance_scale": 1.0},
        ),
        Case(
            "SkyReels V2",
            "skyreels_v2",
            _bare(diffusers.SkyReelsV2Pipeline, _unipc),
            lambda: {**VIDEO, **embeddings(20)},
            calls=2,
            config={"inject_sample_info": False},
        ),
        Case(
            "Wan 2.2, image to video",
            "wan",
            _wan_image,
            lambda: {**VIDEO, **embeddings(20), "image": Image.new("RGB", (96, 64), (90, 20, 200))},
            calls=2,
        ),
        Case(
            "SkyReels V2, long video",
            "skyreels_v2",
            _bare(diffusers.SkyReelsV2DiffusionForcingPipeline, _unipc),
            lambda: {
                **VIDEO,
                **embeddings(20),
                "num_frames": 25,
                "base_num_frames": 17,
                "overlap_history": 9,
                "addnoise_condition": 20,
                "prompt": None,
            },
            calls=2,
            generations=2,
        ),
        Case(
            "HunyuanVideo",
            "hunyuan_video",
            _bare(diffusers.HunyuanVideoPipeline, _flow(7.0), *_TWO),
            _hunyuan,
            config={"guidance_embeds": True},
        ),
        Case(
            "HunyuanVideo, two calls",
            "hunyuan_video",
            _bare(diffusers.HunyuanVideoPipeline, _flow(7.0), *_TWO),
            _hunyuan_true,
            calls=2,
            config={"guidance_embeds": True},
        ),
        Case(
            "LTX",
            "ltx",
            _bare(diffusers.LTXPipeline, _flow(use_dynamic_shifting=True)),
            lambda: {
                "height": 128,
                "width": 192,
                "num_frames": 17,
                **embeddings(14),
                **masks(dtype=torch.bool),
            },
        ),
        Case(
            "LTX, image to video",
            "ltx",
            _bare(diffusers.LTXImageToVideoPipeline, _flow(use_dynamic_shifting=True)),
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
            "Mochi",
            "mochi",
            _bare(diffusers.MochiPipeline, _flow(invert_sigmas=True)),
            lambda: {
                "height": 64,
                "width": 96,
                "num_frames": 13,
                **embeddings(16),
                **masks(dtype=torch.bool),
            },
        ),
        Case(
            "Allegro",
            "allegro",
            _bare(diffusers.AllegroPipeline, EulerAncestralDiscreteScheduler),
            lambda: {
                "height": 64,
                "width": 96,
                "num_frames": 12,
                **embeddings(10),
                **masks(),
                "negative_prompt": None,
                "clean_caption": False,
            },
        ),
        Case(
            "Cosmos",
            "cosmos",
            _bare(
                diffusers.CosmosTextToWorldPipeline,
                lambda: EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5),
                safety_checker=_AllIsSafe(),
            ),
            lambda: {**VIDEO, **embeddings(10)},
            calls=2,
        ),
        Case(
            "Kandinsky 5",
            "kandinsky5",
            _bare(diffusers.Kandinsky5T2VPipeline, _flow(5.0), *_TWO),
            lambda: {
                **VIDEO,
                "prompt_embeds_qwen": noise(1, 7, 14, seed=3),
                "prompt_embeds_clip": noise(1, 9, seed=3),
                "negative_prompt_embeds_qwen": noise(1, 5, 14, seed=4),
                "negative_prompt_embeds_clip": noise(1, 9, seed=4),
                "prompt_cu_seqlens": torch.tensor([0, 7], dtype=torch.int32),
                "negative_prompt_cu_seqlens": torch.tensor([0, 5], dtype=torch.int32),
            },
            calls=2,
        ),
        Case(
            "Flux",
            "flux",
            _bare(diffusers.FluxPipeline, _flow(3.0, use_dynamic_shifting=True), *_TWO),
            lambda: {
                key: value
                for key, value in _pooled(12, 10).items()
                if not key.startswith("negative")
            },
            output="images",
        ),
        Case(
            "Flux, two calls",
            "flux",
            _bare(diffusers.FluxPipeline, _flow(3.0, use_dynamic_shifting=True), *_TWO),
            lambda: {**_pooled(12, 10), "true_cfg_scale": 3.0},
            calls=2,
            output="images",
        ),
        Case(
            "Flux ControlNet",
            "flux",
            _flux_controlnet,
            lambda: {
                **{k: v for k, v in _pooled(12, 10).items() if not k.startswith("negative")},
                "control_image": noise(1, 3, 64, 96, seed=6),
            },
            output="images",
            stepping=("controlnet_block_samples", "controlnet_single_block_samples"),
        ),
        _Fading(
            "Wan VACE, fading strength",
            "wan_vace",
            _bare(diffusers.WanVACEPipeline, _unipc, vae=_Encoder()),
            lambda: {**VIDEO, **embeddings(20)},
            calls=2,
            config={"vace_in_channels": 72},
            stepping=("control_hidden_states_scale",),
        ),
        _TwoPictures(
            "Qwen-Image, two pictures edited",
            "qwen_image",
            _bare(
                diffusers.QwenImageEditPlusPipeline,
                _flow(use_dynamic_shifting=True),
                "processor",
                vae=_Pictures(
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
            _bare(
                diffusers.HunyuanVideoFramepackPipeline,
                _flow(use_dynamic_shifting=True),
                *_TWO,
                "image_encoder",
                "feature_extractor",
                vae=_Pictures(4, spatial_compression_ratio=8, temporal_compression_ratio=4),
            ),
            lambda: {
                **_hunyuan(),
                "num_frames": 17,
                "latent_window_size": 3,
                "image": noise(1, 3, 64, 96, seed=6).sigmoid(),
                "sampling_type": "vanilla",
            },
            generations=2,
            in_suite=False,
        ),
        Case(
            "Stable Diffusion 3",
            "sd3",
            _bare(diffusers.StableDiffusion3Pipeline, _flow(3.0), *_THREE),
            lambda: _pooled(12, 10),
            output="images",
        ),
    )
}
