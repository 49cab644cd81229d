"""Patching a model of ComfyUI: it is compiled with the backend, and knows the sampler's steps.

ComfyUI exchanges the compiled module while a model is applied. So unloading, LoRA patches and other
workflows act on the module inside, as without compilation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pab_compile

KEY = "pab"
MODULE = "diffusion_model"
ONE_CALL_PER_STEP = frozenset(
    f"sample_{name}"
    for name in (
        "euler",
        "euler_ancestral",
        "dpmpp_2m",
        "dpmpp_2m_sde",
        "dpmpp_3m_sde",
        "ddpm",
        "deis",
        "ipndm",
        "lcm",
        "lms",
        "res_multistep",
    )
)
"""Samplers that call the model once at every sigma. Others make calls in between."""


def patched(model: Any, options: Mapping[str, Any]) -> Any:
    """A clone of a model that runs with the backend.

    Args:
        model: a ``ModelPatcher``.
        options: options of the backend.
    """
    from comfy.patcher_extension import WrappersMP
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    clone = model.clone()
    # The options of the sampler change at every step. Their values enter no graph.
    given = {**options, "guard_filter_fn": _without_sampler_options}
    set_torch_compile_wrapper(model=clone, backend="pab", options=given, keys=[MODULE])
    clone.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, KEY)
    clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, in_generation)
    return clone


def in_generation(
    executor: Callable[..., Any], guider: Any, sigmas: Any, *args: Any, **kwargs: Any
) -> Any:
    """Run a sampler in a generation of its own, which knows the timesteps if they are certain."""
    timesteps = timesteps_of(executor, guider, sigmas)
    with pab_compile.generation(timesteps=timesteps):
        return executor(guider, sigmas, *args, **kwargs)


def timesteps_of(executor: Any, guider: Any, sigmas: Any) -> list[float] | None:
    """What the model gets at every step; None if the sampler may also call it in between."""
    sampler = getattr(getattr(executor, "class_obj", None), "sampler_function", None)
    if getattr(sampler, "__name__", "") not in ONE_CALL_PER_STEP or len(sigmas) < 2:
        return None
    sampling = guider.inner_model.model_sampling
    found = [float(sampling.timestep(sigma)) for sigma in sigmas[:-1]]
    is_falling = all(after < before for before, after in itertools.pairwise(found))
    return found if is_falling else None


def _without_sampler_options(guards: Sequence[Any]) -> list[bool]:
    """Which guards Dynamo checks: all but those on the options of the sampler."""
    return ["transformer_options" not in guard.name for guard in guards]
