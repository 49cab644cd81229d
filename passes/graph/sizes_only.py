"""Ops that take only the size, dtype or device of a tensor: they no longer read it.

Before::

    %m = zeros_like(%x)          # looks as if it depended on the latents

After::

    %m = full([2, 30, 8], 0)

Sizes are known in a captured graph. Without this, a gate that is laid out like the latents would
count as depending on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx

from . import ir

aten = torch.ops.aten

_FILLS: dict[str, float | None] = {
    "zeros_like": 0,
    "new_zeros": 0,
    "ones_like": 1,
    "new_ones": 1,
    "full_like": None,
    "new_full": None,
}
_EMPTY = ("empty_like", "new_empty", "new_empty_strided")


def read_sizes_only(graph: fx.Graph) -> int:
    """Replace ops that read none of a tensor's values by ops that do not have it as an input.

    Args:
        graph: a captured graph with static sizes.

    Returns:
        The number of ops replaced. Random ops stay: their tensor says how ranks would share them.
    """
    count = 0
    for node in list(graph.nodes):
        if node.op != "call_function" or ir.is_foreign(node):
            continue
        if ir.is_call(node, "broadcast_tensors"):
            count += _expand_each(node)
        elif (replace := _replacement(node)) is not None:
            with graph.inserting_before(node):
                made = replace(graph)
            ir.copy_facts(made, node)
            node.replace_all_uses_with(made)
            graph.erase_node(node)
            count += 1
    return count


def _replacement(node: fx.Node) -> Callable[[fx.Graph], fx.Node] | None:
    """What makes the node that takes its place; None where the node reads values."""
    name, made = ir.op_name(node), ir.tensor(node)
    if made is None:
        return None
    sizes, strides = map(list, ir.layouts(node)[0])
    placed = {"dtype": made.dtype, "device": made.device}
    if name in _FILLS:
        number = _FILLS[name]
        if number is None:
            number = ir.argument(node, 2 if name == "new_full" else 1, "fill_value")
        if not isinstance(number, (bool, int, float)):
            return None
        return lambda graph: _filled(graph, node, number)
    if name in _EMPTY:
        return lambda graph: graph.call_function(
            aten.empty_strided.default, (sizes, strides), placed
        )
    return None


def _filled(graph: fx.Graph, node: fx.Node, number: float) -> fx.Node:
    """A tensor of one number, with the layout that the node has."""
    made = ir.tensor(node)
    assert made is not None
    sizes, placed = list(ir.layouts(node)[0].sizes), {"dtype": made.dtype, "device": made.device}
    full = graph.call_function(aten.full.default, (sizes, number), placed)
    ir.copy_facts(full, node)
    if made.is_contiguous():
        return full
    ir.set_value(full, made.contiguous())
    order = sorted(range(made.ndim), key=lambda dim: made.stride(dim), reverse=True)
    packed = [sizes[dim] for dim in order]
    full.args = (packed, number)
    ir.set_value(full, made.permute(order).contiguous())
    back = [order.index(dim) for dim in range(made.ndim)]
    return graph.call_function(aten.permute.default, (full, back))


def _expand_each(node: fx.Node) -> int:
    """Every output of ``broadcast_tensors`` depends on its own input only."""
    listed = node.args[0]
    assert isinstance(listed, Sequence)
    count = 0
    for user in list(node.users):
        made = ir.tensor(user)
        if not ir.is_getitem(user) or made is None:
            continue
        with node.graph.inserting_before(user):
            each = node.graph.call_function(
                aten.expand.default,
                (listed[int(str(user.args[1]))], list(ir.layouts(user)[0].sizes)),
            )
        ir.copy_facts(each, user)
        user.replace_all_uses_with(each)
        node.graph.erase_node(user)
        count += 1
    return count
