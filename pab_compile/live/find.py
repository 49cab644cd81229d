"""Finding the modules of a pipeline that denoise, to compile them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pab_compile.denoisers import (
    denoisers_of,
    has_timestep,
    how_to_compile,
    input_names,
    parts_of,
    what_it_is,
)
from pab_compile.errors import UnsupportedModelError

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
        found = denoisers_of(target, axes)
    if not found:
        raise UnsupportedModelError(_nothing(target, parts, axes))
    unique: dict[str, torch.nn.Module] = {}
    for role, module in found.items():
        if all(module is not other for other in unique.values()):
            _check_plain(role, module)
            unique[role] = module
    return unique


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
    if isinstance(target, torch.nn.Module):
        return _no_timestep(target, parts, axes)
    hint = "Give a pipeline of diffusers, or the module that denoises."
    if isinstance(target, str):
        return (
            f"Nothing denoises in the text {target!r}. Load the pipeline first, as in "
            f"DiffusionPipeline.from_pretrained({target!r}), and give that."
        )
    if isinstance(target, type):
        return f"{target.__name__} is a class: make or load an object of it first, and give that."
    if isinstance(target, (list, tuple)):
        return f"Nothing denoises in {_a(target)}. Call enable for each entry."
    found = ", ".join(f"{role} ({type(part).__name__})" for role, part in parts.items())
    if callable(target) and not parts:
        hint += f" A function is compiled with {_TORCH}."
    what = "None" if target is None else _a(target)
    return f"Nothing denoises in {what}. Modules that were found: {found or 'none'}. {hint}"


def _a(target: Any) -> str:
    """The name of its type, with an article."""
    name = type(target).__name__
    return f"an {name}" if name[:1].upper() in tuple("AEIO") else f"a {name}"


def _no_timestep(
    target: torch.nn.Module, parts: Mapping[str, torch.nn.Module], axes: Mapping[str, str]
) -> str:
    name = _a(target)
    if what := what_it_is(target):
        return f"Nothing denoises in {name}: it {what}. {how_to_compile(None)}"
    inputs = ", ".join(input_names(target)) or "none"
    timely = [role for role, part in parts.items() if has_timestep(part, axes)]
    hint = f" Its parts {', '.join(timely)} have one: give such a part." if timely else ""
    return (
        f"Nothing denoises in {name}: none of its inputs ({inputs}) is called like a timestep."
        f'{hint} If one of them is the timestep, state it: axes={{"name": "step"}}.'
    )
