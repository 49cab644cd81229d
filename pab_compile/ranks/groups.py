"""Groups: process groups that the ranks of a mesh have for themselves, and can make anew.

A rank that leaves them wakes the ranks that wait in them. The graphs name a group, so a group that
is made anew gets the name of the one before.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from .meet import Mesh


def timeout_of(world: dist.ProcessGroup) -> timedelta:
    """The ``timeout`` that the user gave ``init_process_group``."""
    device = "cuda" if dist.get_backend(world) == "nccl" else "cpu"
    try:
        return world._get_backend(torch.device(device)).options._timeout
    except (RuntimeError, AttributeError):  # the backend does not say
        store: Any = world.get_group_store()
        return store.timeout


class OwnGroups:
    """The groups of a rank: with those that share its tokens, and those that share its batch.

    Args:
        mesh: the same for every rank of the default group.
        timeout: how long a rank waits in them for another.

    Attributes:
        names: of the two groups, for the graphs; ``""`` if a rank is alone on an axis.
    """

    def __init__(self, mesh: Mesh, timeout: timedelta) -> None:
        self._mesh = mesh
        self._timeout = timeout
        self._groups: list[dist.ProcessGroup | None] = [None, None]
        self.names = ["", ""]
        self.make()

    def make(self) -> None:
        """Make the groups. All ranks must call it, since ``new_group`` must be called by all."""
        me = dist.get_rank()
        for number in range(2):
            mine = tuple(sorted(self._mesh[me][number]))
            for axis in dict.fromkeys(tuple(sorted(axes[number])) for axes in self._mesh.values()):
                own = dist.new_group(list(axis), self._timeout) if len(axis) > 1 else None
                if axis == mine and isinstance(own, dist.ProcessGroup):
                    self._groups[number] = own
                    if self.names[number]:
                        _register(self.names[number], own)
                    else:
                        self.names[number] = own.group_name

    def leave(self) -> None:
        """Leave the groups. That wakes the ranks that wait in them for this rank."""
        groups = self._groups
        self._groups = [None, None]
        while groups:
            group, name = groups.pop(), self.names[len(groups)]
            if group is not None and dist.is_initialized():
                if name != group.group_name:
                    _unregister(name)
                dist.destroy_process_group(group)


def _register(name: Any, group: dist.ProcessGroup) -> None:
    """Give a group another name as well."""
    dist.distributed_c10d._register_process_group(name, group)


def _unregister(name: Any) -> None:
    dist.distributed_c10d._unregister_process_group(name)
