"""Weights: what ranks gather in a generation that share the weights of a model.

``gather_weights`` puts a gather of each weight into the graph. It runs when the piece runs that
reads the weight. Hooks of ``fully_shard`` around the whole model gather all weights together,
before each of its calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from pab_compile.passes.rewrite.demand import gathers_weights
from pab_compile.ranks.sends import WEIGHTS, own_exchange
from pab_compile.runtime.layer_hooks import sharding_state

from .comm_report import CommRow


@dataclass(frozen=True)
class GatheredAround:
    """Weights that hooks around the whole model gather together.

    Attributes:
        sent_bytes: bytes that this rank sends to the others.
        num_ranks: the ranks that share the weights.
        at_every_call: whether the weights are freed after a call, and so gathered at the next.
    """

    sent_bytes: int
    num_ranks: int
    at_every_call: bool

    def row(self, num_steps: int) -> CommRow:
        """The row of a generation."""
        steps = num_steps if self.at_every_call else min(num_steps, 1)
        return _row(1, steps, self.sent_bytes * steps, self.num_ranks)


def gathered_around(model: torch.nn.Module) -> tuple[GatheredAround, ...]:
    """What the hooks of ``fully_shard`` around a model gather, one entry per collective."""
    if (state := sharding_state(model)) is None:
        return ()
    return tuple(
        GatheredAround(
            _sent(group), group.mesh_info.shard_mesh_size, not _keeps_whole(state, group)
        )
        for group in state._fsdp_param_groups
        if group.mesh_info.shard_mesh_size > 1
    )


def _sent(group: Any) -> int:
    """Bytes that this rank sends to the others when weights are gathered together."""
    parts = sum(
        param._sharded_param_data.numel()
        * (param.param_dtype or param._sharded_param_data.dtype).itemsize
        for param in group.fsdp_params
    )
    return parts * (group.mesh_info.shard_mesh_size - 1)


def _keeps_whole(state: Any, group: Any) -> bool:
    """Whether weights stay whole after a call; the library decides so for the root by default."""
    return group.post_forward_mesh_info is None or state._auto_reshard_after_forward


def rows_of_weights(
    graph: fx.Graph,
    num_steps: int,
    often: Callable[[Sequence[fx.Node]], float],
    once: Callable[[fx.Node], bool],
) -> tuple[CommRow, ...]:
    """What a graph gathers of weights: one row for all gathers that run equally often.

    Args:
        graph: of one rank.
        num_steps: steps of the generation.
        often: calls of the graph -> the share of the steps at which one of them runs.
        once: whether a call runs once per generation.
    """
    groups: dict[tuple[float, int], list[int]] = {}
    for node in filter(gathers_weights, graph.nodes):
        steps = min(num_steps, 1) if once(node) else round(num_steps * often([node]), 6)
        sent, num_ranks = own_exchange(node)
        groups.setdefault((steps, num_ranks), []).append(sent)
    return tuple(
        _row(len(sent), steps, sum(sent) * steps, num_ranks)
        for (steps, num_ranks), sent in groups.items()
    )


def _row(num_gathers: int, steps: float, sent_bytes: float, num_ranks: int) -> CommRow:
    import sympy

    return CommRow(
        what=WEIGHTS,
        along="every rank",
        num_sites=num_gathers,
        collectives=1,
        computed_steps=steps,
        convention_bytes=0.0,
        wire_bytes=float(sent_bytes),
        formula=sympy.Integer(0),
        neighbours=num_ranks,
    )
