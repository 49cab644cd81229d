"""What diffusers has against our plans in `benchmarks.quality`: hooks on a copy, run eagerly."""

from __future__ import annotations

import ast
import contextlib
import copy
import io
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


def mag_cache(threshold: float, num_steps: int = 30) -> Callable[[torch.nn.Module], Call]:
    """MagCache: all blocks are skipped while the expected change of what they add stays small.

    The first generation calibrates: it skips nothing, and diffusers prints the changes.
    """

    def make(model: torch.nn.Module) -> Call:
        state: dict[str, Any] = {"said": io.StringIO()}
        calibrating = diffusers.MagCacheConfig(num_inference_steps=num_steps, calibrate=True)
        state["call"] = _hooked(model, calibrating)

        def begin() -> None:
            if said := state["said"].getvalue():
                rows = [line for line in said.splitlines() if line.startswith("[")]
                ratios = torch.tensor(ast.literal_eval(rows[-1]))
                state["said"] = io.StringIO()
                state["call"] = _hooked(
                    model,
                    diffusers.MagCacheConfig(
                        threshold=threshold, num_inference_steps=num_steps, mag_ratios=ratios
                    ),
                )
            state["call"].before()

        def call(**inputs: Any) -> Any:
            with contextlib.redirect_stdout(state["said"]):
                return state["call"](**inputs)

        call.before = begin  # type: ignore[attr-defined]
        return call

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
        "MagCache 0.06 (diffusers, eager)": mag_cache(0.06),
        "MagCache 0.2 (diffusers, eager)": mag_cache(0.2),
    },
}
"""Family of the model -> name -> what makes a callable of the model."""
