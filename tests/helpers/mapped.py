"""Functions that map (``torch.vmap``), as Dynamo traces them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from helpers.captured import values
from pab_compile.dynamo import trace_once
from pab_compile.passes.graph import ir


def dynamo_graph(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor | None = None
) -> fx.GraphModule:
    """A function of one tensor as Dynamo traces it: of ``[3, 4]`` unless one is given."""
    found: list[fx.GraphModule] = []

    def look(graph_module: fx.GraphModule, inputs: object) -> tuple[torch.Tensor, ...]:
        found.append(graph_module)
        return graph_module(*inputs)  # type: ignore[misc]

    with torch.no_grad():
        trace_once(function, (values(3, 4) if x is None else x,), {}, look)
    return found[0]


def num_maps(graph_module: fx.GraphModule) -> int:
    """How many maps a graph enters."""
    return sum(ir.is_call(node, "_vmap_increment_nesting") for node in graph_module.graph.nodes)


def outer(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """A nested map, as masks of queries and keys are made."""
    return torch.vmap(lambda row: torch.vmap(lambda column: (row - column).abs() < 2)(columns))(
        rows
    )
