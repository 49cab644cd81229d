"""The benchmark of several devices runs on the CPU, over gloo."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from benchmarks import ranks
from benchmarks.latte import TINY
from helpers.world import World

pytestmark = pytest.mark.xdist_group("ranks")


def compare(group: dist.ProcessGroup) -> list[ranks.Compared]:
    torch._dynamo.reset()
    mesh = DeviceMesh.from_group(group, "cpu")
    plans = {"PAB246": ranks.PLANS["PAB246"]}
    size = replace(TINY, num_layers=1)
    return list(ranks.measure(size, torch.device("cpu"), torch.float32, mesh, "eager", plans))


def test_two_processes_measure_and_compare_a_plan(world: World) -> None:
    for found in world.run(compare, ranks=2):
        (row,) = found
        assert row.plan == "PAB246" and row.alone > 0 and row.together > 0
        assert row.difference < ranks.BOUNDS[torch.float32]
        assert row.line(2).startswith("PAB246: ") and "ms on 2" in row.line(2)
