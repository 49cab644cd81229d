"""Unmapping: what a graph maps over values that change from call to call becomes plain ops.

``torch.vmap`` makes the masks of flex attention, also those that depend on lengths of prompts. A
trace into ops that stay whole, such as attention, cannot pass it. So each section is traced by
itself, as deep as torch goes, before the rest of the graph::

    vmap(...)
    %row = add_batch_dim(%lengths, 0, 1)               %a = unsqueeze(%lengths, 1)
    %seen = lt(%columns, %row)                   ->    %mask = lt(%columns, %a)
    %mask = remove_batch_dim(%seen, 1, 2, 0)
    end of vmap

A section that writes to what it is given stays as it is. So does one of floating numbers in a graph
that casts by itself (autocast): what it is given would be cast here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from . import ir
from .autocast import has_autocast
from .mapped import mapped_sections, run_node, version_of
from .tracing import fake, trace_plain, tracing
from .walk import feeding, in_order, results

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode


def unmap(graph_module: fx.GraphModule, tensors: Sequence[torch.Tensor]) -> int:
    """Replace mapped sections by the plain ops that they consist of.

    Args:
        graph_module: a Dynamo graph of tensors; modified in place.
        tensors: one per placeholder: real, meta or fake.

    Returns:
        The number of sections that were replaced.
    """
    sections = mapped_sections(graph_module.graph)
    if not (sections and tensors):
        return 0
    casts = has_autocast(graph_module.graph)
    fakes = fake(tensors)
    values = dict(zip(ir.placeholders(graph_module.graph), fakes, strict=True))
    replaced = 0
    for section in sections:
        plain = _plain(section, values, fakes[0].fake_mode)
        if plain is not None and not (casts and _has_floats(plain[0])):
            _replace(section, *plain)
            replaced += 1
    graph_module.graph.lint()
    graph_module.recompile()
    return replaced


def _plain(
    section: Sequence[fx.Node], values: dict[fx.Node, Any], mode: FakeTensorMode
) -> tuple[fx.GraphModule, list[fx.Node]] | None:
    """A section as plain ops of its tensors, and these; None if it cannot be made.

    Args:
        section: its nodes.
        values: fake tensors of the inputs, and of what was run for earlier sections; this adds to
            them.
        mode: that of the fake tensors.
    """
    before = in_order(feeding(section) - set(section))
    read = [node for node in before if any(user in section for user in node.users)]
    try:
        with tracing(), torch.no_grad(), mode:
            _run([node for node in before if node not in values], values)
            versions = [version_of(values[node]) for node in before]
            _run(section, values)
        if versions != [version_of(values[node]) for node in before]:
            return None
        tensors = [node for node in read if isinstance(values[node], torch.Tensor)]

        def run(*given: torch.Tensor) -> list[torch.Tensor]:
            inside = {**values, **dict(zip(tensors, given, strict=True))}
            _run(section, inside)
            return [inside[node] for node in results(section)]

        with tracing():
            traced = trace_plain(run, [values[node] for node in tensors], mode)
    except (RuntimeError, NotImplementedError, TypeError, AttributeError):
        return None
    holds_tensors = any(node.op == "get_attr" for node in traced.graph.nodes)
    return None if holds_tensors else (traced, tensors)


def _has_floats(traced: fx.GraphModule) -> bool:
    values = [ir.tensor(node) for node in traced.graph.nodes]
    return any(value is not None and value.is_floating_point() for value in values)


def _run(nodes: Sequence[fx.Node], values: dict[fx.Node, Any]) -> None:
    for node in nodes:
        run_node(node, values)


def _replace(section: Sequence[fx.Node], traced: fx.GraphModule, read: Sequence[fx.Node]) -> None:
    """Put plain ops in the place of a section."""
    graph = section[0].graph
    known = dict(zip(ir.placeholders(traced.graph), read, strict=True))
    with graph.inserting_before(section[0]):
        outputs: Any = graph.graph_copy(traced.graph, known)  # type: ignore[arg-type]
    for node, output in zip(results(section), outputs, strict=True):
        node.replace_all_uses_with(output)
    for node in reversed(section):
        graph.erase_node(node)
