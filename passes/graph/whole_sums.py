"""Whole sums: what is added part by part, or over a stack, is one sum.

The parts of one tensor are added to those of another::

    %a = add(slice(%x, 1, 0, 3), slice(%y, 1, 0, 3))
    %b = add(slice(%x, 1, 3, 9), slice(%y, 1, 3, 9))
    %z = cat([%a, %b], 1)                                ->      %z is add(%x, %y)

Two tensors are stacked and summed::

    %z = sum(stack([%x, %y]), [0])                       ->      %z is add(%x, %y)

Every element is rounded as before. A sum of three would be rounded once more in a small type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from . import ir
from .open_sizes import compute_value
from .rejoin import have_one_layout, whole_of

_ADD = torch.ops.aten.add.Tensor
_SUB = torch.ops.aten.sub.Tensor


def whole_sums(graph_module: fx.GraphModule) -> int:
    """Write sums of parts, and of two stacked tensors, as sums of the tensors.

    Args:
        graph_module: a captured graph; modified in place.

    Returns:
        The number of sums that were replaced.
    """
    graph = graph_module.graph
    count = 0
    for node in list(ir.calls(graph)):
        found = _of_parts(node) or _of_stack(node)
        if found is None:
            continue
        target, one, other = found
        with graph.inserting_before(node):
            added = graph.call_function(target, (one, other))
        ir.copy_facts(added, node)
        compute_value(added)
        if not have_one_layout(added, node):
            graph.erase_node(added)
            continue
        node.replace_all_uses_with(added)
        count += 1
    if count:
        graph.eliminate_dead_code(ir.must_stay)
        graph_module.recompile()
    return count


def _of_parts(node: fx.Node) -> tuple[Any, fx.Node, fx.Node] | None:
    """The sum whose parts a node concatenates."""
    listed, shape = ir.argument(node, 0, "tensors"), ir.shape(node)
    if not ir.is_call(node, "cat", "concat") or not isinstance(listed, Sequence) or shape is None:
        return None
    target = listed[0].target
    if target not in (_ADD, _SUB) or any(part.target is not target for part in listed):
        return None
    if any(part.kwargs or len(part.all_input_nodes) != 2 for part in listed):
        return None
    dim = ir.argument(node, 1, "dim", 0) % len(shape)
    columns = list(zip(*(part.args for part in listed), strict=True))
    wholes = [whole_of(column, dim) for column in columns]
    if len(wholes) != 2 or wholes[0] is None or wholes[1] is None:
        return None
    are_of_its_size = all(ir.shape(whole) == shape for whole in wholes if whole is not None)
    return (target, wholes[0], wholes[1]) if are_of_its_size else None


def _of_stack(node: fx.Node) -> tuple[Any, fx.Node, fx.Node] | None:
    """The sum of two tensors that are stacked."""
    if not ir.is_call(node, "sum") or ir.argument(node, 2, "keepdim", False) or node.kwargs:
        return None
    stack, dims = node.args[0], ir.argument(node, 1, "dim")
    if not isinstance(stack, fx.Node) or not ir.is_call(stack, "stack"):
        return None
    listed, shape = ir.argument(stack, 0, "tensors"), ir.shape(stack)
    if shape is None or not isinstance(dims, Sequence) or len(dims) != 1 or len(listed) != 2:
        return None
    over = ir.argument(stack, 1, "dim", 0) % len(shape)
    tensor = ir.tensor(node)
    if dims[0] % len(shape) != over or tensor is None or not tensor.is_floating_point():
        return None
    return _ADD, listed[0], listed[1]
