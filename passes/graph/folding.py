"""Folding: a part of a Dynamo graph that maps constants is computed once, at capture.

``torch.vmap`` cannot be traced into plain ops. It makes masks, above all those of flex attention,
mostly from sizes alone::

    %ones = ones([1, 1, 1])
    vmap(...); ...; %mask = ...(%ones, ...)       ->     %mask = attribute mapped_mask
    %y = flex_attention(..., %mask)                      %y = flex_attention(..., %mask)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from . import ir
from .mapped import mapped_sections, run_node, version_of, writes
from .walk import feeding, in_order, results

_RANDOM = ("rand", "bernoulli", "multinomial", "normal", "dropout", "poisson", "exponential")


def fold_mapped_constants(graph_module: fx.GraphModule) -> int:
    """Replace every mapped section that reads no input by buffers with its results.

    Args:
        graph_module: a Dynamo graph; modified in place.

    Returns:
        The number of sections that were folded.
    """
    graph = graph_module.graph
    sections = mapped_sections(graph)
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
        writes(node) and not constants.isdisjoint(node.all_input_nodes)
        for node in sections[0][0].graph.nodes
        if node not in inside
    )


def _run(section: Sequence[fx.Node]) -> dict[fx.Node, torch.Tensor] | None:
    """The results of a section. None if one is no tensor, or the section writes to its operands."""
    before = in_order(feeding(section) - set(section))
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in before:
            run_node(node, values)
        versions = [version_of(values[node]) for node in before]
        for node in section:
            run_node(node, values)
    handed_on = {node: values[node] for node in results(section)}
    if versions != [version_of(values[node]) for node in before]:
        return None
    return handed_on if all(isinstance(r, torch.Tensor) for r in handed_on.values()) else None
