"""Groups: process groups that the ranks of a mesh have for themselves, and can make anew.

A rank that leaves them wakes the ranks that wait in them. The graphs name a group, so a group that
is made anew gets the name of the one before.

``new_group`` must be called by all processes. If only some of them share a model, the others are
elsewhere, so the members of a group make it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from .meet import Mesh, new_name


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
        mesh: the same for every rank in it.
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

    @staticmethod
    def are_possible(mesh: Mesh) -> bool:
        """Whether the ranks of a mesh can make groups without the other processes.

        NCCL splits groups off one that is bound to a device. All processes must take part in that.
        """
        if len(mesh) == dist.get_world_size():
            return True
        is_bound = getattr(dist.group.WORLD, "bound_device_id", None) is not None
        return hasattr(dist.distributed_c10d, "_new_process_group_helper") and not is_bound

    def make(self) -> None:
        """Make the groups. All ranks of the mesh must call it."""
        me = dist.get_rank()
        new_group = _of_all if len(self._mesh) == dist.get_world_size() else _of_members
        for number in range(2):
            mine = tuple(sorted(self._mesh[me][number]))
            for axis in dict.fromkeys(tuple(sorted(axes[number])) for axes in self._mesh.values()):
                own = new_group(axis, self._timeout) if len(axis) > 1 else None
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


def _of_all(ranks: Sequence[int], timeout: timedelta) -> object:
    """A group that all processes make. Only its members get it."""
    return dist.new_group(list(ranks), timeout)


def _of_members(ranks: Sequence[int], timeout: timedelta) -> object:
    """A group that its members make alone. Other ranks get None."""
    if dist.get_rank() not in ranks:
        return None
    c10d: Any = dist.distributed_c10d
    backend, store = c10d._world.pg_map[dist.group.WORLD]
    group, _ = c10d._new_process_group_helper(
        len(ranks),
        ranks.index(dist.get_rank()),
        list(ranks),
        backend,
        store,
        group_name=new_name(store, ranks, "groups"),
        timeout=timeout,
    )
    c10d._world.pg_group_ranks[group] = {rank: place for place, rank in enumerate(ranks)}
    return group


def _register(name: Any, group: dist.ProcessGroup) -> None:
    """Give a group another name as well."""
    dist.distributed_c10d._register_process_group(name, group)


def _unregister(name: Any) -> None:
    dist.distributed_c10d._unregister_process_group(name)
