"""Refusals: what a captured graph must not hold, since no plain op stands for it."""

from __future__ import annotations

import torch
from torch import fx

from . import ir
from .errors import UnsupportedModelError


def refuse_autocast(graph: fx.Graph) -> None:
    """Remove regions without autocast where none was on anyway; any other is an error."""
    for entered in [node for node in graph.nodes if ir.op_name(node) == "_enter_autocast"]:
        device_type, _, enabled, *_ = entered.args
        if not enabled and not torch.is_autocast_enabled(str(device_type)):
            for left in ir.users(entered):
                graph.erase_node(left)
            graph.erase_node(entered)
            continue
        raise UnsupportedModelError(
            "The model switches torch.autocast on or off inside its forward "
            f"({ir.source_line(entered) or 'source unknown'}), and the casts of such a part are "
            "not traced. Use autocast around the call of the model, or cast its weights and inputs."
        )


def refuse_other_memory(graph: fx.Graph) -> None:
    """A tensor that is given other memory inside the forward is an error."""
    for node in ir.calls(graph):
        if ir.is_call(node, "set_"):
            raise UnsupportedModelError(
                "The model gives a tensor other memory inside its forward (tensor.data = ..., "
                f"{ir.source_line(node) or 'source unknown'}), as hooks do that cast or move the "
                "weights of every layer. Put such hooks around the whole model, or take them off."
            )
