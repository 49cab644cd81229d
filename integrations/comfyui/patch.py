"""Patching a model of ComfyUI: it is compiled with the backend, and knows the sampler's steps.

ComfyUI exchanges the compiled module while a model is applied. So unloading, LoRA patches and other
workflows act on the module inside, as without compilation.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pab_compile

from .calls import NamedCalls, need_names

KEY = "pab"
MODULE = "diffusion_model"
ONE_CALL_PER_STEP = frozenset(
    f"sample_{name}"
    for name in (
        "ddpm",
        "deis",
        "dpmpp_2m",
        "dpmpp_2m_cfg_pp",
        "dpmpp_2m_sde",
        "dpmpp_2m_sde_gpu",
        "dpmpp_2m_sde_heun",
        "dpmpp_2m_sde_heun_gpu",
        "dpmpp_3m_sde",
        "dpmpp_3m_sde_gpu",
        "er_sde",
        "euler",
        "euler_ancestral",
        "euler_ancestral_cfg_pp",
        "euler_cfg_pp",
        "gradient_estimation",
        "gradient_estimation_cfg_pp",
        "ipndm",
        "ipndm_v",
        "lcm",
        "lms",
        "res_multistep",
        "res_multistep_ancestral",
        "res_multistep_ancestral_cfg_pp",
        "res_multistep_cfg_pp",
        "unipc",
        "unipc_bh2",
    )
)
"""Samplers that call the model once at every sigma. Others make calls in between, or may do so."""

_UNCOMPILED = (
    "PAB: the model is loaded in part and has a LoRA, so its weights are computed at every call, "
    "and nothing is reused. Free memory for the whole model, or switch whole_output on."
)
UNTRACEABLE = frozenset({"attention_split", "attention_sub_quad"})
"""Attentions that measure the free memory at every call, which Dynamo cannot trace."""


def patched(model: Any, options: Mapping[str, Any]) -> Any:
    """A clone of a model that runs with the backend.

    Args:
        model: a ``ModelPatcher``.
        options: options of the backend.

    Raises:
        RuntimeError: nothing could be reused with the attention that ComfyUI was started with.
    """
    from comfy.patcher_extension import WrappersMP
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    if reuses_parts := options.get("ranges") != {} and options.get("cut") != "output":
        _check_attention()
    clone = model.clone()
    set_torch_compile_wrapper(model=clone, backend="pab", options=dict(options), keys=[MODULE])
    sampling = functools.partial(in_generation, reuses_parts)
    around = {WrappersMP.SAMPLER_SAMPLE: sampling, WrappersMP.APPLY_MODEL: call_model}
    for kind, wrapper in around.items():
        clone.remove_wrappers_with_key(kind, KEY)
        clone.add_wrapper_with_key(kind, KEY, wrapper)
    return clone


def _check_attention() -> None:
    from comfy.ldm.modules import attention

    name = getattr(attention.optimized_attention, "__name__", "")
    if name in UNTRACEABLE:
        raise RuntimeError(
            f"ComfyUI runs attention with {name}, which asks for the free memory at every call. "
            "The compiler cannot trace this, so it would find nothing to reuse. Start ComfyUI with "
            "--use-pytorch-cross-attention, or let the node reuse the whole output."
        )


def in_generation(
    reuses_parts: bool,
    executor: Callable[..., Any],
    guider: Any,
    sigmas: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Run a sampler in a generation of its own, which knows the timesteps if they are certain."""
    timesteps = timesteps_of(executor, guider, sigmas)
    is_uncompiled = reuses_parts and are_made_at_calls(getattr(guider.inner_model, MODULE))
    if is_uncompiled:
        logging.warning(_UNCOMPILED)
    names = None
    if timesteps is not None and need_names(guider, args[0] if args else {}):
        names = NamedCalls([float(sigma) for sigma in sigmas[:-1]])
    tokens = _hooks.set(HookedWeights()), _uncompiled.set(is_uncompiled)
    named = _names.set(names)
    try:
        with pab_compile.generation(timesteps=timesteps):
            return executor(guider, sigmas, *args, **kwargs)
    finally:
        _hooks.reset(tokens[0])
        _uncompiled.reset(tokens[1])
        _names.reset(named)


def are_made_at_calls(module: Any) -> bool:
    """Whether weights are computed at every call, as those of a LoRA in a part that is not loaded.

    Their factors are inputs of the compiled graph like any other. A layer that multiplies tokens by
    them would be taken for cross-attention.
    """
    names = ("weight_function", "bias_function")
    return any(getattr(part, name, None) for part in module.modules() for name in names)


def timesteps_of(executor: Any, guider: Any, sigmas: Any) -> list[float] | None:
    """What the model gets at every step; None if the sampler may also call it in between."""
    sampler = getattr(getattr(executor, "class_obj", None), "sampler_function", None)
    if getattr(sampler, "__name__", "") not in ONE_CALL_PER_STEP or len(sigmas) < 2:
        return None
    sampling = guider.inner_model.model_sampling
    found = [float(sampling.timestep(sigma)) for sigma in sigmas[:-1]]
    is_falling = all(after < before for before, after in itertools.pairwise(found))
    return found if is_falling else None


def call_model(
    executor: Callable[..., Any],
    x: Any,
    t: Any,
    c_concat: Any = None,
    c_crossattn: Any = None,
    control: Any = None,
    transformer_options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Call the model without the functions around it, and say so if its weights are others."""
    from comfy.patcher_extension import WrappersMP

    options = transformer_options or {}
    patcher = getattr(executor.class_obj, "current_patcher", None)
    if (weights := _hooks.get()) is not None:
        weights.called(options, getattr(patcher, "current_hooks", None))
    inside = without_callers(options, WrappersMP.DIFFUSION_MODEL)
    names = _names.get()
    named = contextlib.nullcontext() if names is None else names.around(options)
    with named, _uncompiled_module(executor.class_obj):
        return executor(x, t, c_concat, c_crossattn, control, inside, **kwargs)


@contextmanager
def _uncompiled_module(owner: Any) -> Iterator[None]:
    """Let the model run uncompiled, if this generation must."""
    compiled = getattr(owner, MODULE)
    original = getattr(compiled, "_orig_mod", None) if _uncompiled.get() else None
    if original is None:
        yield
        return
    setattr(owner, MODULE, original)
    try:
        yield
    finally:
        setattr(owner, MODULE, compiled)


def without_callers(options: Mapping[str, Any], innermost: str) -> dict[str, Any]:
    """The options of a model without the wrappers of what is around it.

    Dynamo compiles a model again if it is called with other functions in its options. Those that
    run around the model are others for each clone of a patcher, and the model does not call them.
    What it does call, such as patches of its attentions, stays, and Dynamo checks it.

    Args:
        options: ``transformer_options``.
        innermost: the kind of the wrappers that the model itself calls.
    """
    wrappers = options.get("wrappers", {})
    kept = {name: value for name, value in options.items() if name not in ("wrappers", "callbacks")}
    return {**kept, "wrappers": {innermost: wrappers[innermost]} if innermost in wrappers else {}}


class HookedWeights:
    """Tells the library when hooks exchange weights between the steps of a generation.

    ComfyUI writes such weights in a way that torch does not count. If each prompt has the same
    hooks at every step, there is nothing to tell: what a prompt reuses has its own weights.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, Hashable] = {}
        self._first: object = None

    def called(self, options: Mapping[str, Any], hooks: Any) -> None:
        """Note a call of the model.

        Args:
            options: ``transformer_options``, which name the prompts of the batch.
            hooks: the hooks that the weights have, or None.
        """
        batch, now = tuple(options.get("uuids", ())), options.get("sigmas")
        strengths = tuple((id(each), _strength(each)) for each in hooks.hooks) if hooks else ()
        self._first = now if self._first is None else self._first
        is_late = batch not in self._known and now is not self._first
        if self._known.get(batch, strengths) != strengths or (
            is_late and any({*self._known.values(), strengths})
        ):
            pab_compile.weights_changed()
        self._known[batch] = strengths


def _strength(hook: Any) -> float:
    return float(getattr(hook, "strength_model", getattr(hook, "strength", 1.0)))


_uncompiled: ContextVar[bool] = ContextVar("uncompiled", default=False)
_names: ContextVar[NamedCalls | None] = ContextVar("names", default=None)
_hooks: ContextVar[HookedWeights | None] = ContextVar("hooks", default=None)
