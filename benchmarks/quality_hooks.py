"""What diffusers has against our plans in `benchmarks.quality`: hooks on a copy, run eagerly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import diffusers
import torch

Call = Callable[..., Any]


def taylorseer(model: torch.nn.Module) -> Call:
    """TaylorSeer (Liu et al. 2025): attention modules every third step, else along the line."""
    config = diffusers.TaylorSeerCacheConfig(
        cache_interval=3,
        disable_cache_before_step=3,
        max_order=1,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[r"(temporal_)?transformer_blocks\.\d+\.attn\d"],
    )
    return _hooked(model, config)


def first_block(threshold: float) -> Callable[[torch.nn.Module], Call]:
    """First Block Cache: later blocks are reused while the first one adds nearly the same."""

    def make(model: torch.nn.Module) -> Call:
        return _hooked(model, diffusers.FirstBlockCacheConfig(threshold=threshold))

    return make


def _hooked(model: torch.nn.Module, config: Any) -> Call:
    hooked = copy.deepcopy(model)
    hooked.enable_cache(config)  # type: ignore[operator]

    def call(**inputs: Any) -> Any:
        with hooked.cache_context("generation"):  # type: ignore[operator]
            return hooked(**inputs)

    call.before = hooked._reset_stateful_cache  # type: ignore[attr-defined]
    return call


TAYLORSEER = {"TaylorSeer (diffusers, eager)": taylorseer}
HOOKED: dict[str, dict[str, Callable[[torch.nn.Module], Call]]] = {
    "latte": TAYLORSEER,  # diffusers' First Block Cache fails on its blocks
    "joint": {
        **TAYLORSEER,
        "First Block Cache 0.05 (diffusers, eager)": first_block(0.05),
        "First Block Cache 0.1 (diffusers, eager)": first_block(0.1),
        "First Block Cache 0.2 (diffusers, eager)": first_block(0.2),
    },
}
"""Family of the model -> name -> what makes a callable of the model."""
