"""The clock: reads from the timestep of a call which step it is.

Often a timestep is a view of a scheduler's table. Then its offset is the step, and the table is the
schedule. The table is read from the device only once. Any other timestep is read by value, which
synchronises an accelerator once per call. Its elements may differ (``levels``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from .levels import Level, Levels


@dataclass(frozen=True, eq=False)
class TimestepTable:
    """A scheduler's table of timesteps.

    Attributes:
        base: a tensor over the whole table. It keeps the storage, and so the address, alive.
        version: version counter of the storage when it was read.
        values: the timestep of every step.
    """

    base: torch.Tensor
    version: int
    values: tuple[float, ...]

    def holds(self, timestep: torch.Tensor) -> bool:
        """Whether a timestep is a view of this table, which has not changed since it was read."""
        return (
            timestep.dtype == self.base.dtype
            and timestep.untyped_storage().data_ptr() == self.base.untyped_storage().data_ptr()
            and version_of(timestep) == self.version
        )


@dataclass(frozen=True)
class Reading:
    """What a call's timestep says.

    Attributes:
        value: timestep value, without elements that stand still; None if several levels move.
        index: its position in ``table``, or None without a table.
        table: the scheduler's table, if the timestep is a view of one.
        level: what its elements say, if they are several numbers in memory.
    """

    value: float | None
    index: int | None = None
    table: TimestepTable | None = field(default=None, compare=False)
    level: Level | None = field(default=None, compare=False)


def read_timestep(
    timestep: torch.Tensor,
    known: Iterable[TimestepTable] = (),
    levels: Levels | None = None,
    batch: int | None = None,
) -> Reading:
    """Read a timestep of shape ``[]``, ``[batch]``, ``[batch, frames]`` or ``[batch, tokens]``.

    Args:
        timestep: the clock input of this call.
        known: the tables of the running generations, which are not read again.
        levels: what is known of timesteps whose elements differ; None if there was no call yet.
        batch: size of the batch; None if it is the timestep's first dimension.
    """
    if not _is_one_element(timestep):
        level = (levels or Levels()).read(timestep, batch)
        return Reading(level.value, level=level)
    index = int(timestep.storage_offset())
    table = next((table for table in known if table.holds(timestep)), None)
    table = table or _table_of(timestep)
    if table is not None:
        return Reading(table.values[index], index, table)
    return Reading(float(timestep.flatten()[0].item()))


def version_of(tensor: torch.Tensor) -> int:
    """Version counter of a tensor; 0 for inference tensors, which have none."""
    return 0 if tensor.is_inference() else tensor._version


def is_schedule(values: Sequence[float]) -> bool:
    """Whether numbers can be the timesteps of a generation: at least two, in one direction."""
    if len(values) < 2 or not all(abs(value) <= 1e6 for value in values):
        return False
    pairs = list(itertools.pairwise(values))
    falls, rises = any(a > b for a, b in pairs), any(a < b for a, b in pairs)
    return falls != rises


def _is_one_element(timestep: torch.Tensor) -> bool:
    """Whether all elements are one number in memory: a scalar, or an expanded scalar."""
    return timestep.numel() > 0 and all(
        size == 1 or stride == 0
        for size, stride in zip(timestep.shape, timestep.stride(), strict=True)
    )


def _table_of(timestep: torch.Tensor) -> TimestepTable | None:
    length = timestep.untyped_storage().nbytes() // timestep.element_size()
    if length < 2 or length > 10_000:
        return None
    base = timestep.as_strided((length,), (1,), 0)
    values = tuple(float(value) for value in base.tolist())
    return TimestepTable(base, version_of(timestep), values) if is_schedule(values) else None
