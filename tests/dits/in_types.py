"""DiTs in another floating type, with inputs that they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree

from .build import Denoising
from .spec import Dit

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
T = TypeVar("T")


def first_loop(
    dit: Dit,
    model: torch.nn.Module,
    dtype: torch.dtype,
    num_steps: int,
    attempt: Callable[[Denoising], T],
) -> tuple[Denoising, T]:
    """The inputs of a loop that a model takes, and what an attempt with them returned.

    Where the model needs it, the timestep is cast too, or what the model keeps in float32 is.

    Args:
        dit: the model's description.
        model: the model, in this type.
        dtype: the type.
        num_steps: of the loop.
        attempt: runs the model; raises `RuntimeError` if it does not take the inputs.
    """
    for in_float32, cast_clock in ((False, False), (False, True), (True, False), (True, True)):
        if in_float32:
            _keep_in_float32(model)
        given = replace(dit, inputs=_inputs_in(dit, dtype, cast_clock))
        loop = Denoising(given, num_steps)
        try:
            return loop, attempt(loop)
        except RuntimeError as error:
            failed = error
    raise failed


def _keep_in_float32(model: torch.nn.Module) -> None:
    """Cast back the modules that diffusers leaves in float32 when it loads a model."""
    kept = getattr(model, "_keep_in_fp32_modules", None) or ()
    for name, module in model.named_modules():
        if not set(kept).isdisjoint(name.split(".")):
            module.float()


def _inputs_in(dit: Dit, dtype: torch.dtype, cast_clock: bool) -> Any:
    """The inputs of a model, of another floating type."""

    def cast(value: Any) -> Any:
        is_floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if is_floating else value

    def inputs(**sizes: Any) -> dict[str, Any]:
        made = dit.inputs(**sizes)
        inputs = pytree.tree_map(cast, made)
        return inputs if cast_clock else {**inputs, dit.clock: made[dit.clock]}

    return inputs
