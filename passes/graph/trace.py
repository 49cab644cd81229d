"""Trace: a graph of tensors becomes a functional, pre-dispatch ATen graph, in the cheapest way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import fx

from . import ir
from .trace_calls import trace_calls
from .tracing import Decompositions, fake, is_composite, trace_any, trace_pure, tracing

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensor


def trace(static_graph: fx.GraphModule, tensors: Sequence[torch.Tensor]) -> fx.GraphModule:
    """Trace a graph of tensors only. Foreign ops that consist of plain ops are decomposed.

    Args:
        static_graph: a graph whose placeholders are tensors.
        tensors: one per placeholder: real, meta or fake.

    Raises:
        RuntimeError: torch cannot trace it. Every vmap that it entered is left again.
        NotImplementedError: torch cannot trace it either.
        UnsupportedModelError: it writes to one of its constants.
    """
    fake_args = fake(tensors)
    with tracing():
        captured = _traced(static_graph, fake_args, {})
        if composite := _composite_ops(captured.graph):
            captured = _traced(static_graph, fake_args, composite)
    return captured


def _traced(
    static_graph: fx.GraphModule, fake_args: Sequence[FakeTensor], decompositions: Decompositions
) -> fx.GraphModule:
    for cheap in (trace_calls, trace_pure):
        captured = cheap(static_graph, fake_args, decompositions)
        if captured is not None:
            return captured
    return trace_any(static_graph, fake_args, decompositions)


def _composite_ops(graph: fx.Graph) -> Decompositions:
    """Foreign ops that consist of plain ops, each with its decomposition."""
    foreign = [node.target for node in ir.calls(graph) if ir.is_foreign(node)]
    return {
        op: op.decompose
        for op in foreign
        if isinstance(op, torch._ops.OpOverload) and is_composite(op)
    }
