"""Visible schedules: the timesteps of a generation, found in the variables of the callers.

Many pipelines give the model a copy of the timestep (a cast, ``t / 1000``). The copy does not show
the schedule. But the function that loops over the steps has it in a variable, or in an attribute
such as ``self.scheduler.timesteps``. A list or tensor of numbers that rise or fall can be the
schedule if it contains the timestep, in one of the units in use. Often there are several. At every
step, those that do not go on with the timestep are dropped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from types import FunctionType, ModuleType
from typing import Any

import torch

from .caller import Callers, Run
from .clock import is_schedule

# timestep = offset + factor * number: equal, of 1000 steps, in thousandths, rising from noise.
_UNITS = ((0.0, 1.0), (0.0, 1e-3), (0.0, 1e3), (1.0, -1.0), (1.0, -1e-3))
_MIN_PRECISION = 1e-6
_LOW_PRECISION = torch.finfo(torch.bfloat16).eps  # a timestep may have been rounded on its way
_CUT = 0.999  # a whole number may have been cut from its timestep
_MAX_NUMBERS = 10_000
_MAX_OBJECTS = 500  # per function


@dataclass(frozen=True)
class VisibleSchedule:
    """Timesteps that the callers may be looping over, from the current one on.

    Attributes:
        timesteps: in the unit of the model's timestep.
        precision: relative precision of the model's timestep.
        slack: absolute precision.
        holder: the innermost function that has them in its variables.
    """

    timesteps: tuple[float, ...]
    precision: float
    slack: float = 0.0
    holder: Run | None = None

    def has(self, step: int, timestep: float) -> bool:
        """Whether a step has this timestep."""
        if not 0 <= step < len(self.timesteps):
            return False
        here = self.timesteps[step]
        return math.isclose(here, timestep, rel_tol=self.precision, abs_tol=self.slack)

    def every(self, stride: int) -> VisibleSchedule:
        """Every second, third, ... timestep."""
        return replace(self, timesteps=self.timesteps[::stride])


def precision_of(dtype: torch.dtype) -> float:
    """Relative precision of a timestep."""
    own = torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
    return max(own, _MIN_PRECISION)


def is_timestep(value: Any, timestep: float, dtype: torch.dtype) -> bool:
    """Whether a variable is the current timestep, in any unit.

    Args:
        value: the variable: a number, or a tensor of one number.
        timestep: the value that the model got.
        dtype: of the model's timestep.
    """
    if type(value) is torch.Tensor and value.numel() == 1 and not value.is_complex():
        value = value.item()
    if not isinstance(value, Real):
        return False
    number, precision = float(value), max(precision_of(dtype), _LOW_PRECISION)
    slack = 0.0 if dtype.is_floating_point else _CUT
    return any(
        math.isclose(
            offset + factor * number,
            timestep,
            rel_tol=precision,
            abs_tol=max(slack, offset * precision),
        )
        for offset, factor in _UNITS
    )


def find_schedules(
    callers: Callers, timestep: float, dtype: torch.dtype, known: Sequence[Any] = ()
) -> list[VisibleSchedule]:
    """The schedules that may start at a timestep, the likeliest first.

    The likeliest is of the innermost function. Of several it is one that begins with the timestep,
    then a variable rather than an attribute, then the longest. A last 0 does not count.

    Args:
        callers: the functions around the call.
        timestep: the value that the model got.
        dtype: of the model's timestep.
        known: what may be a row of the schedule although no function has it in sight, such as the
            timesteps of a pipeline's scheduler. It counts if there is no other.
    """
    found = _going_on(list(_rows(callers)), timestep, dtype)
    return found or _going_on(list(_known_rows(known)), timestep, dtype)


def _going_on(rows: Sequence[_Row], timestep: float, dtype: torch.dtype) -> list[VisibleSchedule]:
    """The schedules of these rows that may start at a timestep, the likeliest first."""
    for precision in (precision_of(dtype), _LOW_PRECISION):
        unique: dict[tuple[float, ...], VisibleSchedule] = {}
        for run, here in itertools.groupby(rows, key=lambda row: row.run):
            found = [match for row in here for match in row.going_on(timestep, precision, dtype)]
            for _, schedule in sorted(found, key=lambda match: match[0]):
                unique.setdefault(schedule.timesteps, replace(schedule, holder=run))
        if unique:
            return list(unique.values())
    return []


def may_repeat(timesteps: Sequence[float], step: int, timestep: float, dtype: torch.dtype) -> bool:
    """Whether the step after a step may show the model the same timestep.

    Args:
        timesteps: the schedule that the user stated, in any unit.
        step: the step.
        timestep: what the model got at this step.
        dtype: of the model's timestep.
    """
    both = timesteps[step : step + 2]
    if len(both) < 2:
        return False
    if found := _going_on([_Row(None, 0, both)], timestep, dtype):
        return any(schedule.has(1, timestep) for schedule in found)
    return math.isclose(*both, rel_tol=precision_of(dtype))


def holder_of(callers: Callers, table: torch.Tensor) -> Run | None:
    """The innermost function that has a scheduler's table in its variables."""
    address = table.untyped_storage().data_ptr()
    for run, variables in callers.variables():
        for _, value in _within_reach(variables):
            if _is_row(value) and value.untyped_storage().data_ptr() == address:
                return run
    return None


@dataclass(frozen=True, eq=False)
class _Row:
    """Numbers that rise or fall, in the variables of a function.

    Attributes:
        run: the function; None if none has them.
        level: 0 for a variable, 1 for an attribute of one, 2 for an attribute of an attribute.
        numbers: the numbers.
    """

    run: Run | None
    level: int
    numbers: Sequence[float]

    def going_on(
        self, timestep: float, precision: float, dtype: torch.dtype
    ) -> Iterator[tuple[tuple[int, ...], VisibleSchedule]]:
        """The schedules that go on from a timestep, one per unit and position, with a rank."""
        is_cut = not dtype.is_floating_point and any(n != int(n) for n in self.numbers)
        for offset, factor in _UNITS:
            # A difference is as precise as its larger part.
            slack = _CUT if is_cut else precision if offset else 0.0
            timesteps = tuple(offset + factor * number for number in self.numbers)
            for position, here in enumerate(timesteps[:-1]):
                if math.isclose(here, timestep, rel_tol=precision, abs_tol=slack):
                    rest = timesteps[position:]
                    size = len(rest) - (self.numbers[-1] == 0)
                    rank = (position, self.level, -size, len(rest))
                    yield rank, VisibleSchedule(rest, precision, slack)


def _rows(callers: Callers) -> Iterator[_Row]:
    """Rows of numbers that rise or fall, of the innermost function first. Each is read once."""
    known: dict[int, tuple[Any, Sequence[float]]] = {}  # with the object, so that its id stays
    for run, variables in callers.variables():
        for level, value in _within_reach(variables):
            if id(value) not in known:
                numbers = _numbers(value)
                known[id(value)] = value, numbers if is_schedule(numbers) else []
            if known[id(value)][1]:
                yield _Row(run, level, known[id(value)][1])


def _known_rows(known: Sequence[Any]) -> Iterator[_Row]:
    """Rows that no function has in its variables."""
    numbers = (_numbers(value) for value in known)
    return (_Row(None, 0, row) for row in numbers if is_schedule(row))


def _within_reach(variables: Mapping[str, Any]) -> Iterator[tuple[int, Any]]:
    """Variables, their attributes, and the attributes of these, each once and with its level."""
    own = list(variables.values())
    first = list(itertools.islice(_attributes(own), _MAX_OBJECTS))
    second = list(itertools.islice(_attributes(first), _MAX_OBJECTS))
    seen: set[int] = set()
    for level, values in enumerate((own, first, second)):
        for value in values:
            if id(value) not in seen:
                yield level, value
            seen.add(id(value))


def _attributes(values: Iterable[Any]) -> Iterator[Any]:
    opaque = (torch.nn.Module, torch.Tensor, ModuleType, FunctionType, type)
    for value in values:
        inside = None if isinstance(value, opaque) else getattr(value, "__dict__", None)
        if isinstance(inside, dict):
            yield from list(inside.values())


def _numbers(value: Any) -> list[float]:
    """A row of numbers as a list; ``[]`` for anything else."""
    if isinstance(value, (list, tuple, range)):
        return _listed(value)
    if _is_row(value) or (type(value).__module__ == "numpy" and getattr(value, "ndim", 0) == 1):
        listed = value.tolist() if len(value) <= _MAX_NUMBERS else []
        return listed if all(type(number) in (int, float) for number in listed) else []
    return []


def _listed(values: Sequence[Any]) -> list[float]:
    """The numbers of a list of numbers, or of a list of tensors that each repeat one number."""
    if not 2 <= len(values) <= _MAX_NUMBERS:
        return []
    if all(type(value) in (int, float) for value in values):
        return list(values)
    if not all(type(v) is torch.Tensor and v.ndim <= 1 and v.numel() for v in values):
        return []
    if len({(v.device, v.dtype) for v in values}) > 1 or values[0].is_complex():
        return []
    return torch.stack([value.detach().reshape(-1)[0] for value in values]).tolist()


def _is_row(value: Any) -> bool:
    return (
        type(value) is torch.Tensor
        and value.ndim == 1
        and len(value) > 1
        and value.stride(0) != 0  # an expanded timestep is one number
        and value.layout is torch.strided
        and not value.is_meta
    )
