"""Finding the modules of a pipeline that denoise: those that are called with a timestep.

A pipeline also has text encoders and autoencoders, which have no timestep, and may have networks
that only steer the denoiser, such as a ControlNet. Their roles in the pipeline tell these apart.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from pab_compile.errors import UnsupportedModelError
from pab_compile.passes.graph.number_inputs import sounds_like_time

_HELPERS = ("controlnet", "adapter", "encoder", "vae", "vocoder", "upsampler", "embedder")
_TORCH = "torch.compile(function, backend='pab')"


def find_denoisers(target: Any, axes: Mapping[str, str]) -> dict[str, torch.nn.Module]:
    """The modules to compile, by their roles in a pipeline.

    Args:
        target: a pipeline, or a module. The role of a module alone is ``model``.
        axes: the option ``axes``. It may state which input is the timestep.

    Raises:
        UnsupportedModelError: nothing was found that denoises, or it is compiled already.
    """
    if isinstance(target, torch.nn.Module):
        found = {"model": target} if has_timestep(target, axes) else {}
        parts = dict(target.named_children())
    else:
        parts = parts_of(target)
        found = {
            role: part
            for role, part in parts.items()
            if has_timestep(part, axes) and not any(word in role for word in _HELPERS)
        }
    if not found:
        raise UnsupportedModelError(_nothing(target, parts, axes))
    unique: dict[str, torch.nn.Module] = {}
    for role, module in found.items():
        if all(module is not other for other in unique.values()):
            _check_plain(role, module)
            unique[role] = module
    return unique


def parts_of(pipeline: Any) -> dict[str, torch.nn.Module]:
    """The modules of a pipeline by their roles: its components, or its attributes."""
    components = getattr(pipeline, "components", None)
    parts = components if isinstance(components, dict) else getattr(pipeline, "__dict__", {})
    return {str(k): part for k, part in parts.items() if isinstance(part, torch.nn.Module)}


def has_timestep(module: torch.nn.Module, axes: Mapping[str, str]) -> bool:
    """Whether a module is called with a timestep, by the names of its inputs."""
    if hasattr(module, "_orig_mod"):  # the signature of a compiled module says nothing
        return has_timestep(module._orig_mod, axes)  # type: ignore[arg-type]
    stated = {name for name, role in axes.items() if role == "step"}
    names = _input_names(module)
    return any(sounds_like_time(name) or name in stated for name in names)


def _input_names(module: torch.nn.Module) -> list[str]:
    return [name for name in inspect.signature(module.forward).parameters if name != "self"]


def _check_plain(role: str, module: torch.nn.Module) -> None:
    """Refuse a module that is compiled already."""
    if hasattr(module, "_orig_mod"):
        raise UnsupportedModelError(
            f"{role} is the result of torch.compile already. Give the module that was compiled: "
            "enable compiles it itself."
        )
    if module._compiled_call_impl is not None:
        raise UnsupportedModelError(
            f"{role} is compiled already, by enable or by module.compile(). Change the plan with "
            "the handle of that enable, or call its disable() first."
        )


def _nothing(target: Any, parts: Mapping[str, torch.nn.Module], axes: Mapping[str, str]) -> str:
    """What was found instead of something that denoises, and what to do."""
    what = f"a {type(target).__name__}"
    if isinstance(target, str):
        what = f"the text {target!r}"
    timely = [role for role, part in parts.items() if has_timestep(part, axes)]
    if isinstance(target, torch.nn.Module):
        inputs = ", ".join(_input_names(target)) or "none"
        hint = f" Its parts {', '.join(timely)} have one: give such a part." if timely else ""
        return (
            f"Nothing denoises in {what}: none of its inputs ({inputs}) is called like a timestep."
            f'{hint} If one of them is the timestep, state it: axes={{"name": "step"}}.'
        )
    found = ", ".join(f"{role} ({type(part).__name__})" for role, part in parts.items())
    hint = "Give a pipeline of diffusers, or the module that denoises."
    if callable(target) and not parts:
        hint += f" A function is compiled with {_TORCH}."
    return f"Nothing denoises in {what}. Modules that were found: {found or 'none'}. {hint}"
