"""Send: what the first rank was given takes the place of what the others were given."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from pab_compile.passes.parallel.shard import Grid


def from_first_rank(tensor: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The tensor of the first rank of a mesh, in the layout that this rank's has.

    Args:
        tensor: this rank's.
        grid: the ranks.
    """
    repeated = [
        size > 1 and not stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    ]
    once = tensor[tuple(slice(0, 1) if each else slice(None) for each in repeated)]
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
