"""What others have against our plans in `benchmarks.quality`, under torch.compile.

Each has a process of its own (`workers.py`).

`cache-dit` is not a dependency. Its rows are there if it can be imported.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import importlib.util
import io
import time
from collections.abc import Callable
from typing import Any

import diffusers
import torch

from .examples import digits

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
        state["call"] = _hooked(model, calibrating, compiled=False)  # compiled code prints nothing

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


def cache_dit(threshold: float, num_steps: int = 30) -> Callable[[torch.nn.Module], Call]:
    """Dual Block Cache with TaylorSeer of the package `cache-dit`, under `torch.compile`.

    The settings are those of its documentation, but 4 of 30 steps as warm-up instead of 8: as many
    as the last plans of ours compute at first.
    """

    def make(model: torch.nn.Module) -> Call:
        import cache_dit as package

        hooked = copy.deepcopy(model)
        package.enable_cache(
            package.BlockAdapter(
                transformer=hooked,
                blocks=hooked.transformer_blocks,
                forward_pattern=package.ForwardPattern.Pattern_0,
            ),
            cache_config=package.DBCacheConfig(
                Fn_compute_blocks=1,
                residual_diff_threshold=threshold,
                max_warmup_steps=4,
                enable_separate_cfg=False,
                num_inference_steps=num_steps,
            ),
            calibrator_config=package.TaylorSeerCalibratorConfig(taylorseer_order=1),
        )
        compiled = torch.compile(hooked)

        def call(**inputs: Any) -> Any:
            return compiled(**inputs)

        call.before = lambda: package.refresh_context(  # type: ignore[attr-defined]
            hooked, num_inference_steps=num_steps
        )
        return call

    return make


def _hooked(model: torch.nn.Module, config: Any, compiled: bool = True) -> Call:
    hooked = copy.deepcopy(model)
    hooked.enable_cache(config)  # type: ignore[operator]
    inner = torch.compile(hooked) if compiled else hooked

    def call(**inputs: Any) -> Any:
        with hooked.cache_context("generation"):  # type: ignore[operator]
            return inner(**inputs)

    call.before = hooked._reset_stateful_cache  # type: ignore[attr-defined]
    return call


TAYLORSEER = {"TaylorSeer (diffusers)": taylorseer}
CACHE_DIT = {
    "cache-dit 0.12, TaylorSeer": cache_dit(0.12),
    "cache-dit 0.24, TaylorSeer": cache_dit(0.24),
}
HOOKED: dict[str, dict[str, Callable[[torch.nn.Module], Call]]] = {
    "latte": TAYLORSEER,  # diffusers' First Block Cache fails on its blocks
    "joint": {
        **TAYLORSEER,
        "First Block Cache 0.05 (diffusers)": first_block(0.05),
        "First Block Cache 0.1 (diffusers)": first_block(0.1),
        "First Block Cache 0.2 (diffusers)": first_block(0.2),
        "MagCache 0.06 (diffusers)": mag_cache(0.06),
        "MagCache 0.2 (diffusers)": mag_cache(0.2),
        **(CACHE_DIT if importlib.util.find_spec("cache_dit") else {}),
    },
}
"""Family of the model -> name -> what makes a callable of the model."""


class Other:
    """Generates with a method of others, in a worker.

    Args:
        job: the family of the model, and the name of the method.
    """

    def __init__(self, job: tuple[str, str]) -> None:
        family, name = job
        torch.compiler.config.recompile_limit = 4096  # hooks recompile as their states change
        self._trained = digits.load(digits.find_folder(family))
        self._call = HOOKED[family][name](self._trained.model)

    def __call__(self, asked: tuple[Any, Any, int]) -> tuple[Any, float]:
        """Returns videos and seconds for shown digits, noise and a number of steps."""
        shown, noise, num_steps = asked
        self._call.before()  # type: ignore[attr-defined]
        start = time.perf_counter()
        videos = digits.generate(
            self._trained,
            torch.from_numpy(shown),
            torch.from_numpy(noise),
            model=self._call,
            num_steps=num_steps,
        )
        return videos.numpy(), time.perf_counter() - start
