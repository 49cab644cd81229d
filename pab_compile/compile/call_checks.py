"""Calls that cannot be compiled, and errors that nobody foresaw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pab_compile.dynamo import ModelCall
from pab_compile.errors import GradModeError, InvariantError, UnsupportedModelError


def check_gradients(args: Sequence[Any]) -> None:
    """Refuse a call that needs gradients.

    Raises:
        GradModeError: it does.
    """
    tensors = (arg for arg in args if isinstance(arg, torch.Tensor))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise GradModeError(
            "The model was called with gradients enabled, and inputs or weights require them. "
            "Reused outputs have no gradient. Call the model under torch.no_grad() or "
            "torch.inference_mode(), or freeze the weights with model.requires_grad_(False)."
        )


def check_other_caches(calls: Sequence[ModelCall]) -> None:
    """Refuse a model that diffusers lets reuse outputs too (``enable_cache``).

    Raises:
        UnsupportedModelError: it is one.
    """
    for module in (call.module for call in calls):
        if getattr(module, "is_cache_enabled", False):
            name = type(getattr(module, "_cache_config", None)).__name__
            raise UnsupportedModelError(
                f"The model already has a cache ({name}), which reuses outputs as this backend "
                "does. Call disable_cache() on the model, or compile it with another backend."
            )


def defect(error: Exception) -> InvariantError:
    """The error for a failure that this library did not foresee."""
    words = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return InvariantError(
        f"The compilation failed ({words}). This is a defect of pab_compile, not of the model. "
        'options={"on_unsupported": "passthrough"} compiles the model without reuse.'
    )
