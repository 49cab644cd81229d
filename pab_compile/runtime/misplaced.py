"""Misplaced: what was compiled is not what denoises. The error says what to compile instead."""

from __future__ import annotations

from types import FrameType
from typing import Any

import torch

from pab_compile.denoisers import (
    denoisers_of,
    has_timestep,
    how_to_compile,
    is_pipeline,
    name_of,
    parts_of,
    what_it_is,
)
from pab_compile.dynamo import ModelCall, callers
from pab_compile.errors import UnsupportedModelError


def check_no_pipeline(calls: list[ModelCall]) -> None:
    """Refuse a whole pipeline that was given to ``torch.compile``.

    Raises:
        UnsupportedModelError: says which part of it to compile.
    """
    for call in calls:
        # A method of a pipeline may be compiled. ``torch.compile(pipe)`` makes a function with the
        # attributes of the pipeline.
        is_whole = (
            call.owner is call.function or getattr(call.function, "__name__", "") == "__call__"
        )
        if is_whole and is_pipeline(call.owner):
            raise UnsupportedModelError(
                f"torch.compile was given a whole {name_of(call.owner)}: it would trace the "
                f"loop over the steps too. {how_to_compile(call.owner)}"
            )


def with_place(error: UnsupportedModelError, calls: list[ModelCall]) -> UnsupportedModelError:
    """An error that a model cannot be broadcast, with what to compile instead of it.

    Args:
        error: the error.
        calls: the calls of compiled models on the stack, the innermost first.
    """
    module = calls[0].module if calls else None
    if module is None:
        return error
    pipeline = next((found for frame in callers() if (found := _holder(frame, module))), None)
    what = what_it_is(module)
    is_denoiser = pipeline is not None and any(
        module is getattr(part, "_orig_mod", part) for part in denoisers_of(pipeline).values()
    )
    if is_denoiser or has_timestep(module) or (not what and pipeline is None):
        return error
    return not_a_denoiser(error, module, pipeline)


def not_a_denoiser(
    error: UnsupportedModelError, module: torch.nn.Module, pipeline: Any = None
) -> UnsupportedModelError:
    """An error that a model cannot be broadcast, for a module that does not denoise.

    Args:
        error: the error. What it says of the graph helps only if nothing is known of the module.
        module: the module.
        pipeline: the pipeline that it belongs to, if it is known.
    """
    what = what_it_is(module)
    said = f"{type(module).__name__} {what or 'is called with no timestep'}, and does not denoise."
    more = "" if what else f" What was found: {error}"
    found = UnsupportedModelError(f"{said} {how_to_compile(pipeline)}{more}")
    found.__cause__ = error
    return found


def _holder(frame: FrameType, module: torch.nn.Module) -> Any:
    """The pipeline among the variables of a function that has a module as a part, or None."""
    for value in frame.f_locals.values():
        if not isinstance(value, torch.nn.Module) and hasattr(value, "__dict__"):
            parts = parts_of(value).values()
            if any(module is getattr(part, "_orig_mod", part) for part in parts):
                return value
    return None
