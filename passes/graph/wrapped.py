"""Wrapped: tensors that are made of other tensors, such as quantised weights.

A subclass of ``torch.Tensor`` may store its numbers in plain tensors (``__tensor_flatten__``) and
compute with those. A captured graph takes the plain tensors and builds the wrapper itself. After
tracing, only the ops are left::

    (weight: Int8)           linear(x, weight)
    (weight.q, weight.scale) linear(x, q.to(float)) * scale
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx


def is_wrapped(value: Any) -> bool:
    """Whether a value is a tensor that is made of others."""
    return isinstance(value, torch.Tensor) and hasattr(type(value), "__tensor_flatten__")


def plain_tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The plain tensors that a tensor is made of, with their names. A plain one is its own part."""
    if not is_wrapped(value):
        yield name, value
        return
    for attribute in value.__tensor_flatten__()[0]:
        inner = getattr(value, attribute)
        if isinstance(inner, torch.Tensor):  # a sharded one also holds its mesh
            yield from plain_tensors(inner, f"{name}.{attribute}")


def mesh_of(value: Any) -> Any:
    """The mesh of ranks that share a tensor (``DTensor``); None if each rank has all of it."""
    return getattr(value, "device_mesh", None) if is_wrapped(value) else None


class Rewrap(torch.nn.Module):
    """Builds a tensor from its plain tensors.

    Args:
        like: the tensor that was taken apart.
    """

    def __init__(self, like: torch.Tensor) -> None:
        super().__init__()
        self._like = [like]  # in a list: it is no weight of this module

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """The tensor that is made of these."""
        return _rewrapped(self._like[0], iter(tensors))


def _rewrapped(like: Any, tensors: Iterator[torch.Tensor]) -> torch.Tensor:
    if not is_wrapped(like):
        return next(tensors)
    attributes, context = like.__tensor_flatten__()
    values = {name: getattr(like, name) for name in attributes}
    inner = {
        name: _rewrapped(value, tensors) if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
    }
    return type(like).__tensor_unflatten__(inner, context, like.shape, like.stride())


def take_plain(graph_module: fx.GraphModule, tensors: Sequence[torch.Tensor]) -> None:
    """Make a graph take the plain tensors of its inputs.

    Args:
        graph_module: changed in place.
        tensors: one per placeholder.
    """
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    for number, (node, tensor) in enumerate(zip(list(placeholders), tensors, strict=True)):
        if not is_wrapped(tensor):
            continue
        with graph_module.graph.inserting_before(node):
            inner = [
                graph_module.graph.placeholder(f"{node.name}_{place}")
                for place, _ in enumerate(plain_tensors(tensor))
            ]
        name = f"rewrap_{number}"
        graph_module.add_submodule(name, Rewrap(tensor))
        first_call = next(n for n in graph_module.graph.nodes if n.op != "placeholder")
        with graph_module.graph.inserting_before(first_call):
            node.replace_all_uses_with(graph_module.graph.call_module(name, tuple(inner)))
        graph_module.graph.erase_node(node)
    graph_module.recompile()
