"""Refusals: what a captured graph must not contain, since no plain op expresses it."""

from __future__ import annotations

import torch
from torch import fx

from pab_compile.passes.errors import OR_OUTPUT, NotTracedError

from . import ir
from .ops import CASTS

_CPU_DTYPES = (torch.bfloat16, torch.float16)
_OTHER_MEMORY = ("set_", "shallow_copy_data_")


def refuse_autocast(graph: fx.Graph) -> None:
    """Remove regions of autocast that cast nothing. Any other region is an error."""
    for entered in [node for node in graph.nodes if ir.op_name(node) == "_enter_autocast"]:
        outside = torch.is_autocast_enabled(str(entered.args[0]))
        if not outside and (not _is_enabled(entered) or _casts_nothing(entered)):
            for left in ir.users(entered):
                graph.erase_node(left)
            graph.erase_node(entered)
            continue
        raise NotTracedError(
            "The model switches torch.autocast on or off inside its forward "
            f"({ir.source_line(entered) or 'source unknown'}), and the casts of such a part are "
            "not traced. Use autocast around the call of the model, or cast its weights and "
            f"inputs. {OR_OUTPUT}"
        )


def _is_enabled(entered: fx.Node) -> bool:
    """Whether autocast is on in a region; on CPUs torch switches it off for other dtypes."""
    device_type, dtype, enabled, *_ = entered.args
    return bool(enabled) and (device_type != "cpu" or dtype in (None, *_CPU_DTYPES))


def _casts_nothing(entered: fx.Node) -> bool:
    """Whether a region casts to float32, and its ops read and yield only float32 without it."""
    nodes = list(entered.graph.nodes)
    (left,) = ir.users(entered)
    region = nodes[nodes.index(entered) : nodes.index(left)]
    read = [arg for node in region if not ir.is_call(node, *CASTS) for arg in node.all_input_nodes]
    tensors = [tensor for node in (*region, *read) for tensor in ir.tensors(node)]
    floats = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return entered.args[1] is torch.float32 and floats <= {torch.float32}


def refuse_other_memory(dynamo_graph: fx.GraphModule) -> None:
    """Raise an error if the forward gives a tensor other memory.

    This looks at Dynamo's graph, because functionalisation in torch 2.15 loses such a write.
    """
    graphs = [m.graph for m in dynamo_graph.modules() if isinstance(m, fx.GraphModule)]
    for node in (node for graph in graphs for node in graph.nodes):
        if node.op.startswith("call_") and ir.op_name(node) in _OTHER_MEMORY:
            raise NotTracedError(
                "The model gives a tensor other memory inside its forward (tensor.data = ..., "
                f"{ir.source_line(node) or 'source unknown'}), as hooks do that cast or move the "
                "weights of every layer. Put such hooks around the whole model, or take them off. "
                + OR_OUTPUT
            )
