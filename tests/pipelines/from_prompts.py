"""Pipelines that are given prompts alone."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
)

from .case import Case, embeddings, masks, noise
from .parts import THREE, TWO, VIDEO, AllIsSafe, bare, flow, hunyuan, pooled, unipc

_WAN = bare(diffusers.WanPipeline, unipc)


def _hunyuan_true() -> dict[str, Any]:
    return {
        **hunyuan(),
        "true_cfg_scale": 4.0,
        "negative_prompt_embeds": noise(1, 7, 14, seed=4),
        "negative_pooled_prompt_embeds": noise(1, 9, seed=4),
        "negative_prompt_attention_mask": torch.ones(1, 7),
    }


FROM_PROMPTS = (
    Case(
        "Latte",
        "latte",
        bare(diffusers.LattePipeline, DDIMScheduler),
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
        bare(diffusers.CogVideoXPipeline, CogVideoXDDIMScheduler),
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
        bare(diffusers.SkyReelsV2Pipeline, unipc),
        lambda: {**VIDEO, **embeddings(20)},
        calls=2,
        config={"inject_sample_info": False},
    ),
    Case(
        "SkyReels V2, long video",
        "skyreels_v2",
        bare(diffusers.SkyReelsV2DiffusionForcingPipeline, unipc),
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
        bare(diffusers.HunyuanVideoPipeline, flow(7.0), *TWO),
        hunyuan,
        config={"guidance_embeds": True},
    ),
    Case(
        "HunyuanVideo, two calls",
        "hunyuan_video",
        bare(diffusers.HunyuanVideoPipeline, flow(7.0), *TWO),
        _hunyuan_true,
        calls=2,
        config={"guidance_embeds": True},
    ),
    Case(
        "LTX",
        "ltx",
        bare(diffusers.LTXPipeline, flow(use_dynamic_shifting=True)),
        lambda: {
            "height": 128,
            "width": 192,
            "num_frames": 17,
            **embeddings(14),
            **masks(dtype=torch.bool),
        },
    ),
    Case(
        "Mochi",
        "mochi",
        bare(diffusers.MochiPipeline, flow(invert_sigmas=True)),
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
        bare(diffusers.AllegroPipeline, EulerAncestralDiscreteScheduler),
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
        bare(
            diffusers.CosmosTextToWorldPipeline,
            lambda: EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5),
            safety_checker=AllIsSafe(),
        ),
        lambda: {**VIDEO, **embeddings(10)},
        calls=2,
    ),
    Case(
        "Kandinsky 5",
        "kandinsky5",
        bare(diffusers.Kandinsky5T2VPipeline, flow(5.0), *TWO),
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
        bare(diffusers.FluxPipeline, flow(3.0, use_dynamic_shifting=True), *TWO),
        lambda: {
            key: value for key, value in pooled(12, 10).items() if not key.startswith("negative")
        },
        output="images",
    ),
    Case(
        "Flux, two calls",
        "flux",
        bare(diffusers.FluxPipeline, flow(3.0, use_dynamic_shifting=True), *TWO),
        lambda: {**pooled(12, 10), "true_cfg_scale": 3.0},
        calls=2,
        output="images",
    ),
    Case(
        "Stable Diffusion 3",
        "sd3",
        bare(diffusers.StableDiffusion3Pipeline, flow(3.0), *THREE),
        lambda: pooled(12, 10),
        output="images",
    ),
)
