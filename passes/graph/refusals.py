"""Refusals: what a captured graph must not contain, since no plain op expresses it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import fx

from pab_compile.passes.errors import NotTracedError

from . import ir
from .origin import source_line
from .wrapped import mesh_of

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
            f"({shared[0]}). What they exchange happens inside of such tensors, so the graph does "
            "not show it. Give each rank whole weights and let the ranks share the tokens: "
            'options={"mesh": mesh}. To save memory too, call fully_shard on its layers.'
        )
