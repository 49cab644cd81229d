"""Layer hooks: hooks of other libraries that bring the weights of a layer just before it runs.

Afterwards they take them away again, so that only one layer or group at a time is in the memory of
the accelerator, or in the larger type. Dynamo does not trace such hooks: it breaks the forward at
every layer.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pab_compile.errors import UnsupportedModelError

CASTING = "layerwise casting"
GROUPS = "group offloading"
FROM_DISK = "offloading to disk"
SEQUENTIAL = "sequential offloading"
PLACING = "placing layers on devices"
SHARDED = "fully_shard"

_WAY_OUT = (
    "First attach them, then call pab_compile.enable(model): it casts and moves the weights inside "
    "the graph instead. If the model is enabled already, call disable() on its handle first."
)
_GATHER = (
    "After fully_shard call pab_compile.gather_weights(model): each layer then gathers its weights "
    "inside the graph. With FullyShardedDataParallel use fully_shard instead."
)
_SHOWN = 2  # hooks that an error names
_FROM_DISK = "Weights that are not in memory cannot be brought inside the graph."


@dataclass(frozen=True, eq=False)
class LayerHook:
    """A hook of a layer.

    Attributes:
        feature: what it belongs to.
        layer: the layer.
        hook: the hook, an object of the library that attached it.
    """

    feature: str
    layer: torch.nn.Module
    hook: Any


def layer_hooks(model: torch.nn.Module) -> Iterator[LayerHook]:
    """The hooks that bring weights, of a model and of all its layers, as far as they run.

    A hook that brings the whole model at once is none of them.
    """
    for layer in model.modules():
        for name, hook in getattr(vars(layer).get("_diffusers_hook"), "hooks", {}).items():
            if name not in ("layerwise_casting", "group_offloading"):
                continue
            if hook.fn_ref.pre_forward != hook.pre_forward:
                continue  # another function was put in its place
            if name == "layerwise_casting":
                yield LayerHook(CASTING, layer, hook)
            else:
                on_disk = hook.group.offload_to_disk_path is not None
                yield LayerHook(FROM_DISK if on_disk else GROUPS, layer, hook)
        for hook in aligning_hooks(layer):
            if not hook.offload:
                yield LayerHook(PLACING, layer, hook)
            else:
                yield LayerHook(
                    SEQUENTIAL if _is_in_memory(layer, hook) else FROM_DISK, layer, hook
                )


def aligning_hooks(layer: torch.nn.Module) -> tuple[Any, ...]:
    """The hooks of accelerate that a layer has, if all of them bring weights or move inputs."""
    if not isinstance(layer.forward, functools.partial):
        return ()  # it has no hook, or another function was put in its place
    hook = vars(layer).get("_hf_hook")
    hooks = tuple(getattr(hook, "hooks", (hook,)))
    return hooks if all(hasattr(one, "weights_map") for one in hooks) else ()


def named_tensors(
    layer: torch.nn.Module, recurse: bool = True
) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters and buffers of a layer, under each of their names.

    Args:
        layer: the layer.
        recurse: whether those of its layers count too.
    """
    yield from layer.named_parameters(recurse=recurse, remove_duplicate=False)
    yield from layer.named_buffers(recurse=recurse, remove_duplicate=False)


def offloaded(layer: torch.nn.Module, hook: Any) -> dict[str, torch.Tensor]:
    """The weights that a hook of accelerate will give a layer, which has none at the moment."""
    tensors = named_tensors(layer, recurse=hook.place_submodules)
    weights = hook.weights_map
    return {name: weights[name] for name, tensor in tensors if tensor.is_meta and name in weights}


def _is_in_memory(layer: torch.nn.Module, hook: Any) -> bool:
    """Whether a hook has the weights of a layer. One that reads files gives others each time."""
    first, second = offloaded(layer, hook), offloaded(layer, hook)
    return all(first[name] is second[name] for name in first)


def sharding_state(layer: torch.nn.Module) -> Any:
    """What ``fully_shard`` keeps of a layer whose hooks gather its weights; None without hooks."""
    library = sys.modules.get("torch.distributed.fsdp")
    if library is None or not isinstance(layer, library.FSDPModule):
        return None
    state: Any = layer._get_fsdp_state()  # pyright: ignore
    hooks = (getattr(hook, "__self__", None) for hook in layer._forward_pre_hooks.values())
    return state if any(owner is state for owner in hooks) else None


@contextmanager
def whole_weights(model: torch.nn.Module | None) -> Iterator[None]:
    """Gather what the hooks around a whole model would gather, for one that is not called itself.

    All ranks that share the weights must do it.
    """
    if model is None or sharding_state(model) is None:
        yield
        return
    sharded: Any = model
    sharded.unshard()
    try:
        yield
    finally:
        sharded.reshard()


def _is_sharded(layer: torch.nn.Module) -> bool:
    """Whether ranks gather the weights of a layer just before it runs."""
    library = sys.modules.get("torch.distributed.fsdp")
    if library is not None and isinstance(layer, library.FullyShardedDataParallel):
        return True
    return sharding_state(layer) is not None


def with_cause(
    error: UnsupportedModelError, model: torch.nn.Module | None
) -> UnsupportedModelError:
    """An error that a model cannot be broadcast, with its layer hooks as the cause if it has any.

    If it has none, the cause may be what Dynamo was told not to trace.

    Args:
        error: the error.
        model: the model; None if a function was compiled.
    """
    found = () if model is None else layer_hooks(model)
    features = dict.fromkeys(hook.feature for hook in found if hook.layer is not model)
    way_out = _FROM_DISK if FROM_DISK in features else _WAY_OUT
    if model is not None and any(map(_is_sharded, list(model.modules())[1:])):
        features, way_out = {SHARDED: None, **features}, _GATHER
    if not features and model is not None and (untraced := _untraced(model)):
        shown = ", ".join(untraced[:_SHOWN])
        more = f" and {len(untraced) - _SHOWN} more" if len(untraced) > _SHOWN else ""
        return _caused(
            error,
            f"Dynamo must not trace {shown}{more} of this model (torch.compiler.disable), so the "
            "forward is broken there. Take the hook off, or let Dynamo trace it. What was found "
            "so: ",
        )
    if not features:
        return error
    return _caused(
        error,
        f"Hooks around the layers of this model ({', '.join(features)}) break the forward at every "
        f"layer. {way_out} What was found so: ",
    )


def _caused(error: UnsupportedModelError, before: str) -> UnsupportedModelError:
    """An error with its cause in front of it."""
    caused = UnsupportedModelError(f"{before}{error}")
    caused.__cause__ = error.__cause__
    return caused


def _untraced(model: torch.nn.Module) -> list[str]:
    """The hooks and forwards of layers that Dynamo was told not to trace."""
    found = []
    for name, layer in model.named_modules():
        if layer is model:
            continue
        hooks = [*layer._forward_pre_hooks.values(), *layer._forward_hooks.values()]
        if any(map(_is_disabled, hooks)):
            found.append(f"a hook of {name!r}")
        if _is_disabled(layer.forward):
            found.append(f"the forward of {name!r}")
    return found


def _is_disabled(function: Any) -> bool:
    """Whether ``torch.compiler.disable`` made a function."""
    return bool(getattr(function, "_torchdynamo_disable", False))
