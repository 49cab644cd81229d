"""Noise: ops of a captured graph that have no effect at inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from . import ir

_WITHOUT_EFFECT = ("_assert_tensor_metadata", "_set_grad_enabled")


def remove_noise(graph_module: fx.GraphModule) -> int:
    """Remove ops without effect at inference: dropout in eval, assertions, aliases, dead code.

    Switches of gradients, which ``torch.no_grad()`` inside of a forward leaves, go too.

    A cast to the type of another tensor does not use that tensor's value. So it no longer reads it.
    The same is true of a copy over all of another tensor, which writes in place leave behind.

    Returns:
        The number of nodes removed.
    """
    graph = graph_module.graph
    before = len(graph.nodes)
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if _is_identity(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif ir.is_call(node, *_WITHOUT_EFFECT) or _holds_anyway(node):
            graph.erase_node(node)
        elif ir.is_call(node, "type_as"):
            _cast_by_dtype(node, node.args[0])
        elif ir.is_call(node, "copy") and _overwrites(node):
            _cast_by_dtype(node, node.args[1])
    graph.eliminate_dead_code(ir.must_stay)
    graph_module.recompile()
    return before - len(graph.nodes)


def _cast_by_dtype(node: fx.Node, x: Any) -> None:
    """``type_as(x, y)`` becomes ``_to_copy(x, dtype=..., device=...)``, or ``x``."""
    assert isinstance(x, fx.Node)
    before, after = ir.tensor(x), ir.tensor(node)
    assert before is not None and after is not None
    if (before.dtype, before.device) == (after.dtype, after.device):
        node.replace_all_uses_with(x)
        node.graph.erase_node(node)
        return
    node.target = torch.ops.aten._to_copy.default
    node.args, node.kwargs = (x,), {"dtype": after.dtype, "device": after.device}


def _overwrites(node: fx.Node) -> bool:
    """Whether ``copy(x, y)`` has the layout of ``y``, so that it is ``y`` in the type of ``x``."""
    source = node.args[1]
    if not isinstance(source, fx.Node) or ir.tensor(node) is None or ir.tensor(source) is None:
        return False
    return ir.layouts(node) == ir.layouts(source)


def _holds_anyway(node: fx.Node) -> bool:
    """Whether the node asserts something about sizes that are already known to hold."""
    return ir.is_call(node, "_assert_scalar") and node.args[0] is True


def _is_identity(node: fx.Node) -> bool:
    if ir.is_call(node, "dropout", "feature_dropout"):
        return not ir.argument(node, 2, "train", True) or ir.argument(node, 1, "p", 0.5) == 0
    return ir.is_call(node, "alias", "detach")
