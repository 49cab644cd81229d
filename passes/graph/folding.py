"""Folding: a part of a Dynamo graph that maps constants is computed once, at capture.

``torch.vmap`` cannot be traced into plain ops. It makes masks, above all those of flex attention,
mostly from sizes alone::

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
    """Replace every mapped section that reads no input by buffers with its results.

    Args:
        graph_module: a Dynamo graph; modified in place.

    Returns:
        The number of sections that were folded.
    """
    graph = graph_module.graph
    sections = _mapped_sections(graph)
    constants = _constants(graph)
    if not sections or _is_any_written_to(constants, sections):
        return 0
    folded = 0
    for section in sections:
        if constants.issuperset(section) and (handed_on := _run(section)) is not None:
            for node, result in handed_on.items():
                name = f"mapped_{node.name}"
                graph_module.register_buffer(name, result, persistent=False)
                with graph.inserting_before(section[0]):
                    held = graph.get_attr(name)
                node.replace_all_uses_with(held)
            for node in reversed(section):
                graph.erase_node(node)
            folded += 1
    graph_module.recompile()
    return folded


def _mapped_sections(graph: fx.Graph) -> list[list[fx.Node]]:
    """For every outermost map, the nodes from its beginning to its end."""
    sections: list[list[fx.Node]] = []
    depth = 0
    for node in graph.nodes:
        if ir.is_call(node, _BEGIN):
            depth += 1
            if depth == 1:
                sections.append([])
        if depth:
            sections[-1].append(node)
        depth -= ir.is_call(node, _END)
    return sections


def _constants(graph: fx.Graph) -> set[fx.Node]:
    """Calls that read no input and give the same value at every run."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        is_call = node.op in ("call_function", "call_method")
        is_random = any(word in ir.op_name(node) for word in _RANDOM)
        if is_call and not is_random and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


def _is_any_written_to(constants: set[fx.Node], sections: Sequence[Sequence[fx.Node]]) -> bool:
    """Whether the graph writes to a constant outside of the maps. Such a write would be lost."""
    inside = {node for section in sections for node in section}
    return any(
        _writes(node) and not constants.isdisjoint(node.all_input_nodes)
        for node in sections[0][0].graph.nodes
        if node not in inside
    )


def _writes(node: fx.Node) -> bool:
    name = ir.op_name(node)
    is_operator = hasattr(operator, name)  # and_, or_, not_
    is_in_place = name.endswith("_") and not name.endswith("__") and not is_operator
    return is_in_place or name in _IN_PLACE or "out" in node.kwargs


def _run(section: Sequence[fx.Node]) -> dict[fx.Node, torch.Tensor] | None:
    """The results of a section. None if one is no tensor, or the section writes to its operands."""
    before = in_order(feeding(section) - set(section))
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in before:
            _call(node, values)
        versions = [_version(values[node]) for node in before]
        for node in section:
            _call(node, values)
    handed_on = {node: values[node] for node in results(section)}
    if versions != [_version(values[node]) for node in before]:
        return None
    return handed_on if all(isinstance(r, torch.Tensor) for r in handed_on.values()) else None


def _call(node: fx.Node, values: dict[fx.Node, Any]) -> None:
    args = fx.map_arg(node.args, values.__getitem__)
    kwargs = fx.map_arg(node.kwargs, values.__getitem__)
    if node.op == "get_attr":  # the result of an earlier section
        values[node] = getattr(node.graph.owning_module, str(node.target))
    elif node.op == "call_method":
        values[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
    else:
        values[node] = node.target(*args, **kwargs)  # type: ignore[operator]


def _version(value: Any) -> int:
    return value._version if isinstance(value, torch.Tensor) and not value.is_inference() else 0
