"""Capture: from a Dynamo graph to a functional, pre-dispatch ATen graph with static shapes.

``scaled_dot_product_attention``, ``linear`` and ``layer_norm`` stay single nodes, inputs keep their
order, and the graph is the same on every device. One of the two files that may use private torch
APIs (the other is ``pab_compile/lower.py``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._functorch.aot_autograd import aot_export_module
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from . import ir

_LAST_INDEX = re.compile(r"\[['\"]?([^\]'\"]+)['\"]?\]$|\.(\w+)$")


def capture(dynamo_graph: fx.GraphModule, args: Sequence[Any]) -> fx.GraphModule:
    """Trace a Dynamo graph into a functional, pre-dispatch ATen graph.

    Args:
        dynamo_graph: what Dynamo hands to a backend. Not modified.
        args: one value per placeholder: tensors (real, meta or fake) and integers. Integers
            (dynamic sizes) become constants, so the result has static shapes; its placeholders are
            the tensor inputs in order (see ``tensor_inputs``).

    Returns:
        A graph module without dropout, metadata assertions and dead code. Every placeholder knows
        its name in the caller's words and whether it is a parameter (``ir.source``,
        ``ir.is_constant_input``); every call keeps its module path and source line.
    """
    static_graph, sources = _with_constant_sizes(dynamo_graph, args)
    fake_args = _fake(tensor_inputs(args))
    with torch.no_grad():
        captured, signature = aot_export_module(
            static_graph, fake_args, trace_joint=False, pre_dispatch=True
        )
    assert isinstance(captured, fx.GraphModule)
    _bind_lifted_tensors(captured, static_graph, signature)
    for node, (name, constant) in zip(ir.placeholders(captured.graph), sources, strict=True):
        ir.set_source(node, name)
        ir.set_constant_input(node, constant)
    remove_noise(captured)
    return captured


def tensor_inputs(args: Sequence[Any]) -> list[torch.Tensor]:
    """The inputs of a captured graph among the inputs of the Dynamo graph: the tensors."""
    return [arg for arg in args if isinstance(arg, torch.Tensor)]


def size_inputs(args: Sequence[Any]) -> tuple[Any, ...]:
    """The inputs of a Dynamo graph that a captured graph is specialised on: the numbers."""
    return tuple(arg for arg in args if not isinstance(arg, torch.Tensor))


def remove_noise(graph_module: fx.GraphModule) -> int:
    """Remove ops without effect at inference: dropout in eval, assertions, aliases, dead code.

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
        elif ir.is_call(node, "_assert_tensor_metadata"):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    graph_module.recompile()
    return before - len(graph.nodes)


def _is_identity(node: fx.Node) -> bool:
    if ir.is_call(node, "dropout", "feature_dropout"):
        return not ir.argument(node, 2, "train", True) or ir.argument(node, 1, "p", 0.5) == 0
    return ir.is_call(node, "alias", "detach")


def _with_constant_sizes(
    dynamo_graph: fx.GraphModule, args: Sequence[Any]
) -> tuple[fx.GraphModule, list[tuple[str, bool]]]:
    graph = fx.Graph()
    sources: list[tuple[str, bool]] = []
    known: dict[fx.Node, Any] = {}
    values = iter(args)
    for node in dynamo_graph.graph.nodes:
        if node.op == "placeholder":
            value = next(values)
            if not isinstance(value, torch.Tensor):
                known[node] = value
                continue
            sources.append(_describe_input(node, value))
        copied = graph.node_copy(node, lambda old: known[old])
        known[node] = copied
    return fx.GraphModule(dynamo_graph, graph), sources


def _describe_input(node: fx.Node, value: torch.Tensor) -> tuple[str, bool]:
    """Name of an input in the caller's words, and whether it is a parameter or buffer."""
    dynamo_source = getattr(node, "_dynamo_source", None)
    name = getattr(dynamo_source, "name", node.name)
    name = str(name() if callable(name) else name)
    constant = isinstance(value, torch.nn.Parameter) or bool(
        re.search(r"_parameters\b|_buffers\b", name)
    )
    if constant:
        return name, True
    match = _LAST_INDEX.search(name)
    return (match.group(1) or match.group(2)) if match else name, False


def _fake(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    known = next((t.fake_mode for t in tensors if isinstance(t, FakeTensor)), None)
    mode = known or FakeTensorMode(allow_non_fake_inputs=True)
    return [t if isinstance(t, FakeTensor) else mode.from_tensor(t) for t in tensors]


def _bind_lifted_tensors(captured: fx.GraphModule, origin: fx.GraphModule, signature: Any) -> None:
    """Turn the tensors that the graph itself holds from leading inputs back into attributes."""
    lifted = [*signature.parameters, *signature.buffers]
    for node, name in zip(ir.placeholders(captured.graph), lifted, strict=False):
        owner, _, leaf = name.rpartition(".")
        held = getattr(origin.get_submodule(owner), leaf)
        attribute = f"constant_{name.replace('.', '_')}"
        captured.register_buffer(attribute, held.detach(), persistent=False)
        with captured.graph.inserting_before(node):
            constant = captured.graph.get_attr(attribute)
        constant.meta.update(node.meta)
        node.replace_all_uses_with(constant)
        captured.graph.erase_node(node)
