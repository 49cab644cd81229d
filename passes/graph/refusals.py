"""Refusals: what a captured graph must not contain, since no plain op expresses it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx

from pab_compile.passes.errors import NotTracedError

from . import ir
from .origin import source_line
from .wrapped import mesh_of

_TORCH = os.path.join(os.path.dirname(torch.__file__), "")
_OTHER_MEMORY = ("set_", "shallow_copy_data_")


def refuse_other_memory(dynamo_graph: fx.GraphModule) -> None:
    """Raise an error if the forward gives a tensor other memory.

    This looks at Dynamo's graph, because functionalisation in torch 2.15 loses such a write.
    """
    graphs = [m.graph for m in dynamo_graph.modules() if isinstance(m, fx.GraphModule)]
    for node in (node for graph in graphs for node in graph.nodes):
        if node.op.startswith("call_") and ir.op_name(node) in _OTHER_MEMORY:
            raise NotTracedError(
                "The model gives a tensor other memory inside its forward (tensor.data = ..., "
                f"{source_line(node) or 'source unknown'}), as hooks do that cast or move the "
                "weights of every layer. Put such hooks around the whole model, or take them off."
            )


def refuse_loops(dynamo_graph: fx.GraphModule) -> None:
    """Raise an error if the forward runs a loop whose length depends on values.

    The trace has no symbols for what such a loop computes.
    """
    for node in dynamo_graph.graph.nodes:
        if node.op == "call_function" and ir.op_name(node) == "while_loop":
            raise NotTracedError(
                "The model runs torch.while_loop "
                f"({source_line(node) or 'source unknown'}). How often it runs depends on values, "
                "so it is no plain op, and this graph is not analysed. Write a loop of fixed "
                "length, or run the loop before the call of the model."
            )


def mapped_line(dynamo_graph: fx.GraphModule) -> str:
    """Where the forward calls ``torch.vmap``, or ``""``."""
    for node in dynamo_graph.graph.nodes:
        if node.op == "call_function" and "vmap_increment_nesting" in ir.op_name(node):
            return source_line(node, outside=_TORCH) or "source unknown"
    return ""


def refuse_shared_weights(args: Iterable[Any], wrapped: Mapping[int, str]) -> None:
    """Raise an error if ranks share single tensors of a model, as tensor parallelism does.

    Args:
        args: the inputs of a graph.
        wrapped: position of an input that is made of other tensors -> its name and type.
    """
    shared = [wrapped[n] for n, arg in enumerate(args) if mesh_of(arg) is not None and n in wrapped]
    if shared:
        raise NotTracedError(
            f"Ranks share {len(shared)} tensor(s) of the model, as parallelize_module does "
            f"({shared[0]}), so the graph does not show what they exchange. Give each rank whole "
            'weights and let the ranks share the tokens: options={"mesh": mesh}. To save memory '
            "too, call fully_shard on its layers."
        )
