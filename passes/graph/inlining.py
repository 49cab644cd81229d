"""Inlining: calls in Dynamo's graph that add nothing at inference to what they are given.

Before::

    %y = tag_activation_checkpoint(%block, %x)      # torch.utils.checkpoint
    %z = invoke_subgraph(%block, "block_0", %x)     # torch.compiler.nested_compile_region
    %w = Tensor(%weight)                            # a subclass that is taken as a plain tensor

After::

    %y = (linear(%x, ...), ...)                     # the body of %block
    %z = (linear(%x, ...), ...)                     # likewise
    %weight
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from . import ir

_WRAPPERS = {
    "tag_activation_checkpoint": 1,
    "wrap": 1,
    "wrap_activation_checkpoint": 1,
    "invoke_subgraph": 2,
}
"""Calls that run a body, and the number of their arguments before those of the body."""


def inline_calls(graph_module: fx.GraphModule) -> int:
    """Put the bodies of wrapping calls, and the tensors of plain constructors, in their place.

    Args:
        graph_module: a copy of Dynamo's graph; changed in place.

    Returns:
        The number of calls that are gone.
    """
    graph = graph_module.graph
    count = 0
    for node in list(graph.nodes):
        if node.op == "call_function" and _is_constructor(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            count += 1
        elif isinstance(node.target, torch._ops.HigherOrderOperator):
            count += _inline_body(graph_module, node)
    if count:
        graph_module.recompile()
    return count


def _is_constructor(node: fx.Node) -> bool:
    """Whether a call makes a plain tensor of one tensor, as ``Tensor._make_subclass`` does."""
    target = node.target
    return (
        isinstance(target, type)
        and issubclass(target, torch.Tensor)
        and not hasattr(target, "__tensor_flatten__")
        and len(node.args) >= 1
        and isinstance(node.args[0], fx.Node)
    )


def _inline_body(graph_module: fx.GraphModule, node: fx.Node) -> int:
    body_node = node.args[0] if node.args else None
    own = _WRAPPERS.get(ir.op_name(node))
    if own is None or not isinstance(body_node, fx.Node) or body_node.op != "get_attr":
        return 0
    body = graph_module.get_submodule(str(body_node.target))
    assert isinstance(body, fx.GraphModule), body_node.target
    inner = inline_calls(body)
    with graph_module.graph.inserting_before(node):
        results = _copy_body(graph_module, body, str(body_node.target), node.args[own:])
    for user in list(node.users):
        assert user.target is operator.getitem, f"{user} does not pick one of several results"
        user.replace_all_uses_with(results[int(str(user.args[1]))])
        graph_module.graph.erase_node(user)
    graph_module.graph.erase_node(node)
    if not body_node.users:
        graph_module.graph.erase_node(body_node)
    return inner + 1


def _copy_body(
    graph_module: fx.GraphModule, body: fx.GraphModule, name: str, args: Sequence[Any]
) -> Sequence[Any]:
    """Copy the nodes of a body to where the graph inserts; returns its results."""
    known: dict[fx.Node, Any] = dict(zip(ir.placeholders(body.graph), args, strict=False))
    for inside in body.graph.nodes:
        if inside.op == "output":
            return fx.map_arg(inside.args[0], known.__getitem__)
        if inside.op == "placeholder":
            continue
        copy = known[inside] = graph_module.graph.node_copy(inside, known.__getitem__)
        if inside.op in ("get_attr", "call_module"):  # a constant, or a graph that an op is given
            copy.target = f"{name}_{inside.target}".replace(".", "_")
            member = functools.reduce(getattr, str(inside.target).split("."), body)
            setattr(graph_module, str(copy.target), member)
    raise AssertionError("a graph without an output")
