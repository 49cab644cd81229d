"""Denoisers: which modules of a pipeline are called with a timestep, and what the others are.

A pipeline also has text encoders and autoencoders, which have no timestep, and may have networks
that only steer the denoiser, such as a ControlNet. Their roles in the pipeline tell these apart.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from pab_compile.passes.graph.number_inputs import sounds_like_time

_HELPERS = ("controlnet", "adapter", "encoder", "vae", "vocoder", "upsampler", "embedder")
_NO_AXES: Mapping[str, str] = {}
_EMPTY = (lambda: None).__code__


def parts_of(pipeline: Any) -> dict[str, torch.nn.Module]:
    """The modules of a pipeline by their roles: its components, or its attributes."""
    components = getattr(pipeline, "components", None)
    parts = components if isinstance(components, dict) else getattr(pipeline, "__dict__", {})
    return {
        str(role): part
        for role, part in parts.items()
        if isinstance(part, torch.nn.Module) and not str(role).startswith("__")  # what it wraps
    }


def denoisers_of(pipeline: Any, axes: Mapping[str, str] = _NO_AXES) -> dict[str, torch.nn.Module]:
    """The modules of a pipeline that denoise, by their roles. A module has none but its parts.

    Args:
        pipeline: anything.
        axes: the option ``axes``. It may state which input is the timestep.
    """
    return {
        role: part
        for role, part in parts_of(pipeline).items()
        if has_timestep(part, axes) and not any(word in role for word in _HELPERS)
    }


def is_pipeline(target: Any) -> bool:
    """Whether something is no module itself, but has modules that denoise."""
    is_other = isinstance(target, (torch.nn.Module, type)) or hasattr(target, "_orig_mod")
    return not is_other and bool(denoisers_of(target))


def has_timestep(module: torch.nn.Module, axes: Mapping[str, str] = _NO_AXES) -> bool:
    """Whether a module is called with a timestep, by the names of its inputs."""
    stated = {name for name, role in axes.items() if role == "step"}
    return any(sounds_like_time(name) or name in stated for name in input_names(module))


def input_names(module: torch.nn.Module) -> list[str]:
    """The names of a module's inputs. The signature of a compiled module says nothing."""
    inner = getattr(module, "_orig_mod", module)
    return [name for name in inspect.signature(inner.forward).parameters if name != "self"]


def what_it_is(module: torch.nn.Module) -> str:
    """What a module without a timestep seems to be; ``""`` if that is unknown."""
    if has_timestep(module):
        return ""
    if any(name.startswith("input_ids") for name in input_names(module)):
        return "reads text (input_ids), as text encoders and language models do"
    inner = getattr(module, "_orig_mod", module)
    if hasattr(inner, "encode") and hasattr(inner, "decode"):
        return "encodes and decodes, as the autoencoder of a pipeline does"
    return ""


def name_of(pipeline: Any) -> str:
    """What a pipeline is called. ``torch.compile`` makes a function of it."""
    return "pipeline" if inspect.isfunction(pipeline) else type(pipeline).__name__


def how_to_compile(pipeline: Any) -> str:
    """What to compile instead of a pipeline or of a part that does not denoise.

    Args:
        pipeline: the pipeline; None if it is unknown.
    """
    roles = list(denoisers_of(pipeline)) if pipeline is not None else []
    if not roles:
        return (
            "Compile the part of the pipeline that denoises, usually pipe.transformer: "
            'pipe.transformer = torch.compile(pipe.transformer, backend="pab"). '
            "pab_compile.enable(pipe) finds it by itself."
        )
    named = " and ".join(f"pipe.{role}" for role in roles)
    return (
        f"In this {name_of(pipeline)} {named} denoise{'s' if len(roles) == 1 else ''}: "
        f'pipe.{roles[0]} = torch.compile(pipe.{roles[0]}, backend="pab"), or '
        "pab_compile.enable(pipe)."
    )


def methods_around_forward(module: torch.nn.Module) -> list[str]:
    """Other methods of a module that run its forward, such as one that guides.

    They call ``self.forward``, so they pass by what compiles the call of the module. Methods that
    ``forward`` itself names are parts of it.
    """
    inner = getattr(module, "_orig_mod", module)
    inside = getattr(getattr(type(inner).forward, "__code__", None), "co_names", ())
    return [
        name
        for name in dir(type(inner))
        if name.startswith("forward_") and name not in inside
        if "forward" in getattr(getattr(type(inner), name), "__code__", _EMPTY).co_names
    ]
