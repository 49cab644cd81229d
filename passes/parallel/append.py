"""Appending: adds ops to a graph, each with its fake value.

The value of every op is computed as soon as the op is added. So a size that does not fit shows at
once. Blocks repeat, so what an op makes of operands of the same layouts is computed once, and equal
ops share it, as they do in a captured graph.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.open_sizes import compute_layouts
from pab_compile.passes.graph.tracing import is_plain_fake

_aten = torch.ops.aten


def _key_of(node: fx.Node) -> Any:
    """What the fake value of a call depends on; None if it may depend on more."""
    try:
        key = (node.target, _frozen(node.args), _frozen(node.kwargs))
        hash(key)
    except TypeError:  # a size that is open, or an operand that is no single tensor
        return None
    return key


def _frozen(value: Any) -> Any:
    if isinstance(value, fx.Node):
        found = ir.value(value)
        several = isinstance(found, (list, tuple))
        return tuple(map(_layout, found)) if several else _layout(found)
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return tuple((name, _frozen(entry)) for name, entry in value.items())
    return (type(value), value)


def _layout(value: Any) -> Any:
    if not is_plain_fake(value):
        raise TypeError
    offset = value.storage_offset()
    return (tuple(value.shape), value.stride(), offset, value.dtype, value.device)


class Appender:
    """Appends ops to a graph, with their fake values.

    Args:
        graph: the graph.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self._known: dict[Any, Any] = {}

    def call(self, target: Callable[..., Any], *args: Any, like: fx.Node, **kwargs: Any) -> fx.Node:
        """Append one op; ``like`` is the node of the full graph that it serves."""
        name = f"{like.name}_{ir.short_name(target)}"
        return self._append(target, args, kwargs, name, like)

    def stand_in(
        self,
        node: fx.Node,
        target: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        value: Any = None,
    ) -> fx.Node:
        """Append an op of the full graph with local operands; it keeps its names.

        Args:
            node: the op.
            target: what is called instead.
            args: its arguments.
            kwargs: its named arguments.
            value: its fake value if it is known; None to compute it.
        """
        found = self._append(target, tuple(args), kwargs, node.name, node, value)
        ir.copy_axis_names(found, node)
        return found

    def _append(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str,
        like: fx.Node,
        value: Any = None,
    ) -> fx.Node:
        node = self.graph.create_node("call_function", target, args, kwargs, name)
        ir.copy_facts(node, like)
        times = [when for n in node.all_input_nodes if (when := ir.binding(n)) is not None]
        ir.set_binding(node, max(times, default=ir.binding(like)))
        ir.forget_axis_names(node)
        ir.set_value(node, self.value(node) if value is None else value)
        compute_layouts(node)
        return node

    def value(self, node: fx.Node) -> Any:
        """The fake value of a call on the fake values of its operands."""
        key = _key_of(node)
        if key in self._known:
            return self._known[key]
        args, kwargs = fx.map_arg((node.args, node.kwargs), ir.value)
        assert callable(node.target)
        with torch.no_grad():
            found = node.target(*args, **kwargs)
        several = found if isinstance(found, (list, tuple)) else [found]
        if key is not None and all(map(is_plain_fake, several)):
            self._known[key] = found
        return found

    def reshape(self, x: fx.Node, shape: Sequence[int], like: fx.Node) -> fx.Node:
        """Another view of the same elements; none where the shape is the same."""
        if ir.shape(x) == tuple(shape):
            return x
        return self.call(_aten.reshape.default, x, list(shape), like=like)

    def slice(self, x: fx.Node, dim: int, start: int, stop: int, like: fx.Node) -> fx.Node:
        """A range of positions; none where it is all of them."""
        if (start, stop) == (0, (ir.shape(x) or ())[dim]):
            return x
        return self.call(_aten.slice.Tensor, x, dim, start, stop, like=like)

    def cat(self, parts: Sequence[fx.Node], dim: int, like: fx.Node) -> fx.Node:
        """Concatenate; a single part stays as it is."""
        if len(parts) == 1:
            return parts[0]
        return self.call(_aten.cat.default, list(parts), dim, like=like)

    def permute(self, x: fx.Node, dims: Sequence[int], like: fx.Node) -> fx.Node:
        """Reorder all dimensions; none where the order is the same."""
        if list(dims) == sorted(dims):
            return x
        return self.call(_aten.permute.default, x, list(dims), like=like)

    def pick(self, several: fx.Node, index: int, like: fx.Node) -> fx.Node:
        """One output of an op with several."""
        return self.call(operator.getitem, several, index, like=like)
