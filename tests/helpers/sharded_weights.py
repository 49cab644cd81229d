"""A model whose weights ranks share, as ``fully_shard`` and ``parallelize_module`` make it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import pab_compile
from helpers.latte import Loop, calls_of, compiled_pab, ddim_timesteps, tiny_latte
from helpers.world import Mesh

RANGES = {"spatial": 2, "temporal": 2}
OUTPUT = {"ranges": {"output": 2}, "cut": "output"}
STEPS = 5


def generate(
    group: dist.ProcessGroup | None, how: str, options: dict[str, Any]
) -> tuple[str, torch.Tensor | None, int]:
    """A generation whose ranks share the weights, and the tokens as well for ``with tokens``.

    Returns:
        The error or ``""``, the predictions, and how many outputs of sites were reused.
    """
    torch._dynamo.reset()
    model = tiny_latte(1)
    if group is not None:
        _share(model, how, DeviceMesh.from_group(group, "cpu"))
        options = options | ({"mesh": Mesh(group), "shard": "t"} if "with tokens" in how else {})
    compiled: Any = compiled_pab(model, **options)
    loop = Loop(calls_of(compiled), ddim_timesteps(STEPS))
    try:
        found = loop.run()
    except pab_compile.PabError as error:
        return str(error), None, 0
    return "", found, sum(pab_compile.stats(compiled).reused.values())


def _share(model: Any, how: str, mesh: DeviceMesh) -> None:
    blocks = [*model.transformer_blocks, *model.temporal_transformer_blocks]
    if how.startswith("whole"):
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
    elif how.startswith("layers"):
        for block in blocks:
            fully_shard(block, mesh=mesh)
    else:
        for block in blocks:
            first = {f"attn1.to_{name}": ColwiseParallel() for name in "qkv"}
            second = {"attn1.to_out.0": RowwiseParallel(), "ff.net.2": RowwiseParallel()}
            parallelize_module(block, mesh, {**first, "ff.net.0.proj": ColwiseParallel(), **second})
            block.attn1.heads //= mesh.size()
