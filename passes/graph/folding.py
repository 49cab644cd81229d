"""Folding: what a Dynamo graph maps over constants is computed once, when it is captured.

``torch.vmap`` cannot be traced into plain ops. Masks are made by it, those of flex attention above
all, and mostly from sizes alone::

    %ones = ones([1, 1, 1])
    vmap(...); ...; %mask = ...(%ones, ...)       ->     %mask = attribute mapped_mask
    %y = flex_attention(..., %mask)                      %y = flex_attention(..., %mask)
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from . import ir
from .walk import feeding, in_order, results

_BEGIN, _END = "_vmap_increment_nesting", "_vmap_decrement_nesting"
_IN_PLACE = ("setitem", "iadd", "isub", "imul", "imatmul", "itruediv", "ifloordiv", "imod", "ipow")
_IN_PLACE += ("iand", "ior", "ixor", "ilshift", "irshift")
_RANDOM = ("rand", "bernoulli", "multinomial", "normal", "dropout", "poisson", "exponential")


def fold_mapped_constants(graph_module: fx.GraphModule) -> int:
    """Replace every mapped stretch that reads no input by buffers that hold its results.

    Args:
        graph_module: a Dynamo graph; modified in place.

    Returns:
        The number of stretches that were folded.
    """
    graph = graph_module.graph
    stretches = _mapped_stretches(graph)
    constants = _constants(graph)
    if not stretches or _is_any_written_to(constants, stretches):
        return 0
    folded = 0
    for stretch in stretches:
        if constants.issuperset(stretch) and (handed_on := _run(stretch)) is not None:
            for node, result in handed_on.items():
                name = f"mapped_{node.name}"
                graph_module.register_buffer(name, result, persistent=False)
                with graph.inserting_before(stretch[0]):
                    held = graph.get_attr(name)
                node.replace_all_uses_with(held)
            for node in reversed(stretch):
                graph.erase_node(node)
            folded += 1
    graph_module.recompile()
    return folded


def _mapped_stretches(graph: fx.Graph) -> list[list[fx.Node]]:
    """The nodes from every outermost beginning of a map to its end."""
    stretches: list[list[fx.Node]] = []
    depth = 0
    for node in graph.nodes:
        if ir.is_call(node, _BEGIN):
            depth += 1
            if depth == 1:
                stretches.append([])
        if depth:
            stretches[-1].append(node)
        depth -= ir.is_call(node, _END)
    return stretches


def _constants(graph: fx.Graph) -> set[fx.Node]:
    """Calls that read no input, and give the same at every run."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        is_call = node.op in ("call_function", "call_method")
        is_random = any(word in ir.op_name(node) for word in _RANDOM)
        if is_call and not is_random and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


def _is_any_written_to(constants: set[fx.Node], stretches: Sequence[Sequence[fx.Node]]) -> bool:
    """Whether the graph writes to a constant outside of the maps: that would be lost."""
    inside = {node for stretch in stretches for node in stretch}
    return any(
        _writes(node) and not constants.isdisjoint(node.all_input_nodes)
        for node in stretches[0][0].graph.nodes
        if node not in inside
    )


def _writes(node: fx.Node) -> bool:
    name = ir.op_name(node)
    is_operator = hasattr(operator, name)  # and_, or_, not_
    is_in_place = name.endswith("_") and not name.endswith("__") and not is_operator
    return is_in_place or name in _IN_PLACE or "out" in node.kwargs


def _run(stretch: Sequence[fx.Node]) -> dict[fx.Node, torch.Tensor] | None:
    """What a stretch hands on; None if that is no tensor, or it writes to what it is given."""
    before = in_order(feeding(stretch) - set(stretch))
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in before:
            _call(node, values)
        versions = [_version(values[node]) for node in before]
        for node in stretch:
            _call(node, values)
    handed_on = {node: values[node] for node in results(stretch)}
    if versions != [_version(values[node]) for node in before]:
        return None
    return handed_on if all(isinstance(r, torch.Tensor) for r in handed_on.values()) else None


def _call(node: fx.Node, values: dict[fx.Node, Any]) -> None:
    args = fx.map_arg(node.args, values.__getitem__)
    kwargs = fx.map_arg(node.kwargs, values.__getitem__)
    if node.op == "get_attr":  # what an earlier stretch was folded into
        values[node] = getattr(node.graph.owning_module, str(node.target))
    elif node.op == "call_method":
        values[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
    else:
        values[node] = node.target(*args, **kwargs)  # type: ignore[operator]


def _version(value: Any) -> int:
    return value._version if isinstance(value, torch.Tensor) and not value.is_inference() else 0
