"""Send: what the first rank was given takes the place of what the others were given."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from pab_compile.passes.parallel.shard import Grid
from pab_compile.report.exchanges import Exchanged

from .sends import sent_beside


def from_first_rank(tensor: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The tensor of the first rank of a mesh, in the layout that this rank's has.

    Args:
        tensor: this rank's.
        grid: the ranks.
    """
    once = _once(tensor)
    sent = once.detach().contiguous().clone()
    # First from row to row of the mesh, then within each row.
    for ranks in (grid.batch, grid.tokens):
        if ranks.size > 1:
            name: Any = ranks.group
            group = dist.distributed_c10d._resolve_process_group(name)
            dist.broadcast(sent, group=group, group_src=0)
    received = torch.empty_like(once)  # keeps strides
    received.copy_(sent)
    return received.expand(tensor.shape)


def sent_from_first_rank(tensor: torch.Tensor, grid: Grid) -> list[Exchanged]:
    """What this rank sends there."""
    once = [_once(tensor)]
    return [
        sent_beside("inputs", "broadcast", once, (ranks.size - 1) * (ranks.rank == 0), among)
        for ranks, among in ((grid.batch, "batch"), (grid.tokens, "tokens"))
        if ranks.size > 1
    ]


def _once(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without the rows that repeat others in memory."""
    repeated = [
        size > 1 and not stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    ]
    return tensor[tuple(slice(0, 1) if each else slice(None) for each in repeated)]
