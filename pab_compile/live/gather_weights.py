"""Gather weights: what ``fully_shard`` does around a layer, done inside the graph.

Ranks that share weights (FSDP2) have a shard of each. Hooks gather those of a layer before it runs,
and free them afterwards. Here the layer gathers them itself::

    hook:    unshard(layer); y = layer(x); reshard(layer)
    instead: y = functional(layer, {"weight": all_gather(shard)})(x)

So the forward is one graph. Each gather is in the piece that uses the weight. A step that reuses
the output of a branch gathers none of its weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from pab_compile.dynamo import with_weights
from pab_compile.errors import UnsupportedModelError
from pab_compile.runtime.layer_hooks import sharding_state

Forward = Callable[..., Any]


def gather_weights(model: torch.nn.Module) -> ExitStack:
    """Let the layers of a model gather their weights inside the graph, in the place of hooks.

    Call it after ``fully_shard`` and after weights were loaded, on all ranks, before
    ``torch.compile(model, backend="pab")``. ``enable`` does it by itself. All ranks that share the
    weights must call the model equally often, as with ``fully_shard`` alone.

    Args:
        model: a model that ``fully_shard`` was called on, for the whole of it or for its layers.

    Returns:
        Its ``close()`` lets the hooks run again.

    Raises:
        UnsupportedModelError: no layer has such hooks, or the weights are shared in a way that
            cannot be done in the graph.
    """
    if not any(sharding_state(layer) for layer in model.modules()):
        raise UnsupportedModelError(
            f"No layer of this {type(model).__name__} gathers weights of other ranks with hooks of "
            "fully_shard. Call fully_shard on its layers first, and gather_weights once."
        )
    undo = ExitStack()
    gather_inside(model, undo)
    return undo


def gather_inside(model: torch.nn.Module, undo: ExitStack) -> None:
    """Let all layers whose hooks gather weights gather them inside the graph.

    Args:
        model: the model. It may have no such layer.
        undo: gets what lets the hooks run again.

    Raises:
        UnsupportedModelError: as for ``gather_weights``. Nothing is changed then.
    """
    layers = [layer for layer in model.modules() if sharding_state(layer) is not None]
    found = {layer: list(_shards_of(layer)) for layer in layers}
    for layer, shards in found.items():
        _replace_hooks(layer, shards, undo)


@dataclass(eq=False)
class _Shard:
    """The part of a weight that a rank has.

    Attributes:
        layer: the layer that has the weight.
        name: the name of the weight in the layer that gathers it.
        param: what the library keeps of the weight.
        dtype: the type to gather it in; None for its own.
    """

    layer: torch.nn.Module
    name: str
    param: Any
    dtype: torch.dtype | None

    def flat(self) -> torch.nn.Parameter:
        """The part as one row, equally long on all ranks. It shares memory with the weight."""
        return torch.nn.Parameter(self.param._sharded_param_data, requires_grad=False)

    def whole(self, flat: torch.Tensor) -> torch.Tensor:
        """The weight, gathered from all ranks."""
        if self.dtype is not None and flat.is_floating_point():
            flat = flat.to(self.dtype)
        if flat.device != self.param.device:
            flat = flat.to(self.param.device, non_blocking=True)
        info, size = self.param.mesh_info, self.param._orig_size
        num, dim = info.shard_mesh_size, self.param.fsdp_placement.dim
        ops = torch.ops._c10d_functional
        parts = ops.all_gather_into_tensor(flat, num, info.shard_process_group.group_name)
        parts = ops.wait_tensor(parts)
        part = tuple(self.param.padded_sharded_param_size)
        if dim == 0:
            return parts.view(num * part[0], *part[1:]).narrow(0, 0, size[0])
        return torch.cat(parts.view(num, *part).unbind(), dim)


def _shards_of(layer: torch.nn.Module) -> Iterator[_Shard]:
    """The parts of the weights that a layer gathers before it runs.

    Raises:
        UnsupportedModelError: a weight is shared in another way than over one axis of ranks.
    """
    from torch.distributed.tensor import DTensor

    state = sharding_state(layer)
    sharded: Any = layer
    sharded.reshard()  # after a call, the weights of the root are whole
    if len(state._modules) > 1:
        raise _refused("fully_shard was called on a list of layers")
    names = {id(inner): name for name, inner in layer.named_modules()}
    for param in (param for group in state._fsdp_param_groups for param in group.fsdp_params):
        param.reset_sharded_param()
        if param.is_dtensor or not hasattr(param.mesh_info, "shard_process_group"):
            raise _refused("a weight is shared over more than one axis of ranks, or over none")
        if hasattr(param, "_extensions_data") or not isinstance(param.sharded_param, DTensor):
            raise _refused("a weight gathers itself in a way of its own (fsdp_pre_all_gather)")
        info = param._module_info
        owners = [(info.module, info.param_name)]
        owners += zip(info.shared_modules, info.shared_param_names, strict=True)
        for owner, last in owners:
            path = ".".join(filter(None, (names[id(owner)], last)))
            yield _Shard(owner, path, param, state._mp_policy.param_dtype)


def _refused(reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"The weights of layers cannot be gathered inside the graph: {reason}. Call "
        "fully_shard(layer, mesh=...) for each layer alone, with a mesh of one axis."
    )


def _replace_hooks(layer: torch.nn.Module, shards: list[_Shard], undo: ExitStack) -> None:
    """Take the hooks off a layer, and let its forward gather the weights."""
    state = sharding_state(layer)
    policy = state._mp_policy
    casts = policy.param_dtype if policy.cast_forward_inputs else None
    forward: Forward = layer.forward
    flat = {shard.name: shard.flat() for shard in shards}
    by_name = {shard.name: shard for shard in shards}

    @functools.wraps(forward)
    def gathering(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = _cast(args, casts), _cast(kwargs, casts)
        weights = {name: by_name[name].whole(part) for name, part in flat.items()}
        with with_weights(layer, weights):
            return _cast(forward(*args, **kwargs), policy.output_dtype)

    def load(*_: Any) -> None:
        """Weights that were loaded may be other tensors."""
        for shard in shards:
            if flat[shard.name].data_ptr() != shard.param._sharded_param_data.data_ptr():
                flat[shard.name] = shard.flat()

    for owner in dict.fromkeys(shard.layer for shard in shards):
        undo.callback(owner.register_load_state_dict_post_hook(load).remove)
    state._pre_forward_hook_handle.remove()
    state._post_forward_hook_handle.remove()
    undo.callback(_attach, layer, state, layer.forward)
    layer.forward = gathering  # type: ignore[method-assign]


def _attach(layer: torch.nn.Module, state: Any, forward: Forward) -> None:
    """Attach the hooks of a layer again."""
    layer.forward = forward  # type: ignore[method-assign]
    state._pre_forward_hook_handle = layer.register_forward_pre_hook(
        state._pre_forward, prepend=True, with_kwargs=True
    )
    state._post_forward_hook_handle = layer.register_forward_hook(state._post_forward)


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    """An input or output, with its floating tensors in another type."""
    if dtype is None:
        return value
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if type(value) in (list, tuple):
        return type(value)([_cast(entry, dtype) for entry in value])
    if isinstance(value, dict):
        return type(value)({name: _cast(entry, dtype) for name, entry in value.items()})
    return value
