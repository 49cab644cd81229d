"""Bring weights: what layer hooks do to the weights of a layer, done inside the graph.

A layer hook changes the weights of a layer before it runs, and changes them back afterwards. Here
the layer computes with weights that were cast or moved, and its own remain as they are::

    hook:    layer.to(torch.bfloat16); y = layer(x); layer.to(torch.float8_e4m3fn)
    instead: y = functional(layer, {"weight": weight.to(torch.bfloat16)})(x)

So the forward is one graph. Each cast is in the piece that uses its result. A step that reuses the
output of a branch brings none of its weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch

from pab_compile.dynamo import forget, with_weights
from pab_compile.runtime.layer_hooks import (
    CASTING,
    FROM_DISK,
    GROUPS,
    LayerHook,
    aligning_hooks,
    layer_hooks,
    named_tensors,
    offloaded,
)

from .gather_weights import gather_inside

_ORDER_FINDERS = ("lazy_prefetch_group_offloading", "layer_execution_tracker")
"""Hooks that find the order of the layers at the first call, for hooks that no longer run."""

Forward = Callable[..., Any]


def bring_weights(model: torch.nn.Module, undo: ExitStack) -> None:
    """Let the layers of a model bring their weights themselves, in the place of layer hooks.

    The hooks remain attached, so their library still knows of them. If weights are on disk, nothing
    is changed.

    Args:
        model: the model. Its hooks must be those of group offloading or layerwise casting of
            diffusers, of offloading of accelerate, or of ``fully_shard``.
        undo: gets what lets the hooks run again.
    """
    gather_inside(model, undo)
    found = list(layer_hooks(model))
    if any(hook.feature == FROM_DISK for hook in found):
        return
    for hook in found:
        if hook.feature in (CASTING, GROUPS):
            _replace_in_registry(hook, undo)
    for layer in dict.fromkeys(hook.layer for hook in found):
        if aligning_hooks(layer):
            _replace_aligning(layer, undo)
    if any(hook.feature == GROUPS for hook in found):
        for layer in model.modules():
            _silence(layer, undo)
    if found:  # without enable, each layer's call may have been compiled by itself
        forget(model.forward)


@dataclass(frozen=True)
class Target:
    """Where and as what a layer needs tensors.

    Attributes:
        device: None: where they are.
        dtype: the type of floating tensors; None: as they are.
    """

    device: torch.device | None = None
    dtype: torch.dtype | None = None

    def changes(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor must be cast or moved."""
        is_elsewhere = self.device is not None and tensor.device != self.device
        is_other = self.dtype is not None and tensor.dtype != self.dtype
        return is_elsewhere or (is_other and tensor.is_floating_point())

    def brought(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor as it is needed."""
        if self.dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(self.dtype)
        if self.device is None:
            return tensor
        return tensor.to(self.device, non_blocking=self.device.type != "cpu")

    def moved(self, value: Any, skipped: Collection[str] = ()) -> Any:
        """An input, with the tensors in it where they are needed; they are not cast."""
        if self.device is None:
            return value
        if isinstance(value, torch.Tensor):
            return value if value.device == self.device else value.to(self.device)
        if type(value) in (list, tuple):
            return type(value)([self.moved(entry, skipped) for entry in value])
        if type(value) is dict:
            return {k: v if k in skipped else self.moved(v, skipped) for k, v in value.items()}
        return value


def bringing(
    layer: torch.nn.Module,
    forward: Forward,
    target: Target,
    names: frozenset[str] | None = None,
    skipped: Collection[str] = (),
) -> Forward:
    """The forward of a layer that brings its weights and moves its inputs.

    Args:
        layer: the layer.
        forward: its forward, which expects weights and inputs where it needs them.
        target: where and as what it needs them.
        names: of the weights to bring; None for all.
        skipped: names of inputs that stay where they are.
    """

    @functools.wraps(forward)
    def brought(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = target.moved(args, skipped), target.moved(kwargs, skipped)
        weights = {
            name: target.brought(tensor)
            for name, tensor in named_tensors(layer)
            if (names is None or name in names) and target.changes(tensor)
        }
        if not weights:
            return forward(*args, **kwargs)
        with with_weights(layer, weights):
            return forward(*args, **kwargs)

    return brought


def _replace_in_registry(found: LayerHook, undo: ExitStack) -> None:
    """Replace a hook of diffusers, which calls the functions that its reference names."""
    reference, layer = found.hook.fn_ref, found.layer
    names, skipped = None, ()
    if found.feature == GROUPS:
        group = found.hook.group
        target = Target(device=torch.device(group.onload_device))
        tensors = [t for module in group.modules for _, t in named_tensors(module)]
        known = {id(t) for t in (*tensors, *group.parameters, *group.buffers)}
        names = frozenset(name for name, tensor in named_tensors(layer) if id(tensor) in known)
        skipped = tuple(found.hook.config.exclude_kwargs or ())
    else:
        target = Target(dtype=found.hook.compute_dtype)
    _ignore(reference, undo)
    forward = bringing(layer, reference.forward, target, names, skipped)
    _set(reference, "forward", forward, undo)


def _silence(layer: torch.nn.Module, undo: ExitStack) -> None:
    """Stop the hooks that find the order of the layers."""
    hooks = getattr(vars(layer).get("_diffusers_hook"), "hooks", {})
    for name in _ORDER_FINDERS:
        if name in hooks:
            _ignore(hooks[name].fn_ref, undo)


def _ignore(reference: Any, undo: ExitStack) -> None:
    """Let what a hook does around the forward of a layer change nothing."""
    _set(reference, "pre_forward", _inputs_as_they_are, undo)
    _set(reference, "post_forward", _output_as_it_is, undo)


def _inputs_as_they_are(_: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def _output_as_it_is(_: torch.nn.Module, output: Any) -> Any:
    return output


def _set(owner: Any, name: str, value: Any, undo: ExitStack) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def _replace_aligning(layer: torch.nn.Module, undo: ExitStack) -> None:
    """Replace the hooks of accelerate around a layer, and give it back the weights they keep."""
    forward: Forward = layer._old_forward  # type: ignore[assignment]
    for hook in reversed(aligning_hooks(layer)):
        device = hook.execution_device
        target = Target(device=None if device is None else torch.device(device))
        for name, weight in offloaded(layer, hook).items() if hook.offload else ():
            _give_back(layer, name, weight, undo)
        skipped = hook.skip_keys or ()
        skipped = (skipped,) if isinstance(skipped, str) else tuple(skipped)
        names = frozenset(name for name, _ in named_tensors(layer, hook.place_submodules))
        forward = bringing(layer, forward, target, names, skipped)
        if hook.io_same_device:
            forward = _returning(forward, skipped)
    undo.callback(setattr, layer, "forward", layer.forward)
    layer.forward = forward  # type: ignore[method-assign]


def _give_back(layer: torch.nn.Module, name: str, weight: torch.Tensor, undo: ExitStack) -> None:
    """Put a weight in the place of the tensor without memory that stands for it."""
    path, _, last = name.rpartition(".")
    owner = layer.get_submodule(path)
    is_parameter = last in owner._parameters
    place = cast("dict[str, Any]", owner._parameters if is_parameter else owner._buffers)
    empty = place[last]
    undo.callback(place.__setitem__, last, empty)
    if is_parameter:
        weight = torch.nn.Parameter(weight, requires_grad=empty.requires_grad)
    place[last] = weight


def _returning(forward: Forward, skipped: Collection[str]) -> Forward:
    """A forward whose outputs are where its first input is."""

    @functools.wraps(forward)
    def returned(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        device = _device_of((args, kwargs))
        return output if device is None else Target(device=device).moved(output, skipped)

    return returned


def _device_of(value: Any) -> torch.device | None:
    """The device of the first tensor in some inputs."""
    if isinstance(value, torch.Tensor):
        return value.device
    entries = value.values() if isinstance(value, dict) else value
    if isinstance(value, (list, tuple, dict)):
        return next((d for entry in entries if (d := _device_of(entry)) is not None), None)
    return None
