"""A real ComfyUI on a CPU: its classes with random weights, its patcher and its samplers.

``COMFYUI_PATH`` names its folder. Modules that it imports but does not need here are empty ones if
they are not installed.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from helpers import empty_modules
from helpers.comfy_models import MODELS
from helpers.comfy_tiny import Tiny


def path() -> str | None:
    """The folder of a ComfyUI, or None."""
    return os.environ.get("COMFYUI_PATH") or None


def load() -> None:
    """Make ComfyUI importable, as ``main.py --cpu --use-pytorch-cross-attention`` starts it."""
    where = path()
    assert where is not None
    if where not in sys.path:
        sys.path.append(where)  # last: its top modules have common names
    empty_modules.install()
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    comfy.cli_args.args.use_pytorch_cross_attention = True


def patcher(name: str, *, seed: int = 0, dtype: Any = torch.float32, cast: Any = None) -> Any:
    """A ``ModelPatcher`` of a tiny model with random weights.

    Args:
        name: a name of ``MODELS``.
        seed: of the weights.
        dtype: of the weights.
        cast: what the weights are cast to on the fly.
    """
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    tiny = MODELS[name]
    config = getattr(comfy.supported_models, tiny.config)(dict(tiny.unet))
    config.set_inference_dtype(dtype, cast)
    model = config.get_model({}, "", device="cpu")
    fill(model.diffusion_model, seed)
    model.diffusion_model.eval().requires_grad_(False)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


def fill(module: torch.nn.Module, seed: int) -> None:
    """Random weights: large enough that all parts of the model matter."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in [*module.parameters(), *module.buffers()]:
            if parameter.is_floating_point():
                drawn = torch.randn(parameter.shape, generator=random)
                scale = 0.5 if parameter.dim() < 2 else 1 / parameter[0].numel() ** 0.5
                parameter.copy_(drawn * scale + (parameter.dim() == 1) * 0.5)


def prompt(name: str, *, seed: int = 0, tokens: int = 6) -> list[list[Any]]:
    """A conditioning, as ComfyUI's text nodes return it.

    Args:
        name: a name of ``MODELS``.
        seed: of the prompt.
        tokens: its length.
    """
    tiny = MODELS[name]
    random = torch.Generator().manual_seed(100 + seed)
    entries: dict[str, Any] = {"pooled_output": None}
    if tiny.pooled is not None:
        entries["pooled_output"] = torch.randn(1, tiny.pooled, generator=random)
    if tiny.has_mask:
        entries["attention_mask"] = torch.ones(1, tokens, dtype=torch.long)
    for key, wanted in tiny.extras.items():
        if wanted == "ones":
            entries[key] = torch.ones(1, tokens, dtype=torch.long)
        elif wanted == "tokens":
            entries[key] = torch.randint(1, 16, (1, tokens), generator=random)
        else:
            entries[key] = torch.randn(wanted, generator=random)
    return [[torch.randn(1, tokens, tiny.text, generator=random), entries]]


def latents_of(tiny: Tiny, *, wider: int = 0, longer: int = 0) -> torch.Tensor:
    """Empty latents, ``wider`` by so many elements and ``longer`` by so many frames."""
    shape = list(tiny.latents)
    shape[-1] += wider
    shape[2] += longer
    return torch.zeros(shape)


def sample(
    model: Any,
    name: str,
    *,
    sampler: str = "euler",
    scheduler: str = "simple",
    steps: int = 8,
    cfg: float = 4.0,
    seed: int = 0,
    tokens: int = 6,
    negative_tokens: int | None = None,
    wider: int = 0,
    longer: int = 0,
    positive: Any = None,
    callback: Any = None,
) -> torch.Tensor:
    """Sample as the node KSampler does.

    Args:
        model: a ``ModelPatcher``.
        name: a name of ``MODELS``.
        sampler: its name.
        scheduler: its name.
        steps: how many.
        cfg: the strength of guidance.
        seed: of noise and prompts.
        tokens: the length of the prompt.
        negative_tokens: the length of the negative prompt. Another length makes two calls of some
            models.
        wider: how much wider the latents are.
        longer: how many frames more they have.
        positive: the prompt, if it is not the one of ``prompt``.
        callback: is called after each step.
    """
    import comfy.sample

    empty = latents_of(MODELS[name], wider=wider, longer=longer)
    return comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(empty, seed),
        steps,
        cfg,
        sampler,
        scheduler,
        positive or prompt(name, seed=seed, tokens=tokens),
        prompt(name, seed=seed + 50, tokens=negative_tokens or tokens),
        empty,
        seed=seed,
        disable_pbar=True,
        callback=callback,
    )
