"""Levels: timesteps that differ between the elements of one call.

Some models take a timestep per token or per frame. Given tokens then stand at a constant level,
such as 0, and all others share one level, which moves. This level is the clock. Which elements
stand still, and where, belongs to the identity of a lane. So an output is reused only if the same
elements stood at the same levels. If several levels move, no step is common to all elements.

A timestep of many elements is compared on its device, so that one read of a few numbers suffices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

STANDING = "elements of the timestep that stand still"  # among the per-prompt inputs of a call

_MAX_KNOWN = 8  # patterns
_MANY = 256  # elements from which on they are compared on the device


@dataclass(frozen=True, eq=False)
class Pattern:
    """Which elements of a timestep stand still, and at which levels.

    Attributes:
        shape: shape of the timestep. Dimensions along which it repeats have size 1.
        levels: per element the level at which it stands; None if it moves.
        key: the levels as a tensor, infinite where they move; None if nothing stands still.
        standing: the levels that stand still, each once.
        sample: the first timestep with this pattern, flat.
        stands: which elements of it stand still.
    """

    shape: tuple[int, ...]
    levels: tuple[float | None, ...]
    key: torch.Tensor | None
    standing: frozenset[float]
    sample: torch.Tensor
    stands: torch.Tensor

    @staticmethod
    def of(timestep: torch.Tensor, values: Sequence[float], moving: float | None) -> Pattern:
        """The pattern of a timestep with these values, of which one level moves, or none."""
        levels = tuple(None if value == moving else value for value in values)
        standing = frozenset(level for level in levels if level is not None)
        key = None
        if standing:
            numbers = [float("inf") if level is None else level for level in levels]
            with torch.inference_mode(False):  # an ordinary tensor is compared by identity
                key = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        flat = timestep.detach().flatten().clone()
        stands = flat != flat[levels.index(None)] if None in levels else torch.ones_like(flat) > 0
        return Pattern(tuple(timestep.shape), levels, key, standing, flat, stands)

    def fits(self, timestep: torch.Tensor) -> bool:
        """Whether a timestep has this pattern's shape, type and device."""
        same_type = timestep.dtype == self.sample.dtype and timestep.device == self.sample.device
        return same_type and tuple(timestep.shape) == self.shape

    def moving_level(self, values: Iterable[float]) -> float | None:
        """The level of the elements that move, if all others stand; else None."""
        moving = set[float]()
        for value, level in zip(values, self.levels, strict=True):
            if level is None:
                moving.add(value)
            elif level != value:
                return None
        return moving.pop() if len(moving) == 1 else None

    def compared(self, timestep: torch.Tensor) -> torch.Tensor:
        """On the device: one element that moves, and 1 if the timestep has this pattern, else 0."""
        flat = timestep.flatten()
        first = flat[self.levels.index(None)]
        holds = torch.where(self.stands, flat == self.sample, flat == first).all()
        return torch.stack([first, holds.to(first.dtype)])


@dataclass(frozen=True, eq=False)
class Level:
    """What a timestep of several elements says.

    Attributes:
        value: the level that moves; None if several do.
        pattern: the elements that stand still. If several levels move, all elements.
        before: the pattern of the call before, if this call is the first with its own one.
        is_next: whether the levels differ from those of the call before.
        is_start: whether they are above those of the call before, as at the start of a generation,
            or the first ones of which several move.
    """

    value: float | None
    pattern: Pattern
    before: Pattern | None = None
    is_next: bool = True
    is_start: bool = True

    @property
    def values(self) -> Iterator[float]:
        """All elements."""
        moving = float("nan") if self.value is None else self.value
        return (moving if level is None else level for level in self.pattern.levels)

    @property
    def distinct(self) -> frozenset[float]:
        """All levels."""
        return self.pattern.standing | (frozenset() if self.value is None else {self.value})

    @property
    def highest(self) -> float:
        """The largest magnitude of a level."""
        return max((abs(value) for value in self.distinct if value == value), default=0.0)


class Levels:
    """Reads the timesteps of a model's calls, and remembers which elements stand still.

    The level of the largest magnitude moves; the others must stand. If an element that stood has
    moved, several levels move, until the levels rise again as at the start of a generation. Rows
    that differ in a timestep per row are of different generations.
    """

    def __init__(self) -> None:
        self._seen: list[Level] = []  # the last call of each pattern, the newest last
        self._is_apart = False

    def read(self, timestep: torch.Tensor, batch: int | None = None) -> Level:
        """Read a timestep. It is read from its device once.

        Args:
            timestep: the timestep. Its first dimension is the batch, or it has no batch.
            batch: size of the batch; None if it is the first dimension.
        """
        is_per_row = timestep.numel() == timestep.shape[0] == (batch or timestep.shape[0])
        timestep = _without_repeats(timestep)
        alike = [level for level in reversed(self._seen) if level.pattern.fits(timestep)]
        level = self._read_known(timestep, alike)
        if level is None:
            values = tuple(map(float, timestep.flatten().tolist()))
            level = _known(values, alike) or _judged(timestep, values, alike, is_per_row)
        last = self._seen[-1] if self._seen else None
        starts = last is not None and level.highest > last.highest
        if self._is_apart and level.pattern.key is not None and not starts:
            level = Level(None, Pattern.of(timestep, tuple(level.values), None))
        if last is not None:
            is_next = level.distinct != last.distinct
            level = replace(level, is_next=is_next, is_start=starts or not self._is_apart)
        self._is_apart = level.value is None
        self._remember(level)
        return level

    def _read_known(self, timestep: torch.Tensor, alike: Sequence[Level]) -> Level | None:
        """The level of a timestep with many elements and a known pattern, with one small read."""
        known = [level for level in alike if level.value is not None]
        if self._is_apart or timestep.numel() < _MANY or not known:
            return None
        compared = torch.stack([level.pattern.compared(timestep) for level in known]).tolist()
        for level, (value, holds) in zip(known, compared, strict=True):
            if holds:
                return Level(float(value), level.pattern)
        return None

    def _remember(self, level: Level) -> None:
        """Keep the last call of each pattern, and the last one with several moving levels."""
        kept = [
            old for old in self._seen if old.pattern is not level.pattern and old.value is not None
        ]
        self._seen = [*kept, replace(level, before=None)][-_MAX_KNOWN:]


def _without_repeats(timestep: torch.Tensor) -> torch.Tensor:
    """A timestep without the elements that are the same ones in memory."""
    for dim, stride in enumerate(timestep.stride()):
        if stride == 0 and timestep.shape[dim] > 1:
            timestep = timestep.narrow(dim, 0, 1)
    return timestep


def _known(values: Sequence[float], alike: Sequence[Level]) -> Level | None:
    """The level of a timestep with a known pattern."""
    for level in alike:
        moving = level.pattern.moving_level(values)
        if moving is not None:
            return Level(moving, level.pattern)
    return None


def _judged(
    timestep: torch.Tensor, values: Sequence[float], alike: Sequence[Level], is_per_row: bool
) -> Level:
    """The level of a timestep with a new pattern."""
    moving = max(values, key=abs)
    standing = set(values) - {moving}
    is_clear = all(value == value for value in values) and -moving not in standing
    if standing and is_per_row:
        is_clear = False  # rows of a batch may be of different generations
    if is_clear and standing and standing != {0.0} and alike:
        before = alike[0]
        is_start = abs(moving) > before.highest
        is_clear = is_start or all(
            value in (moving, old) for value, old in zip(values, before.values, strict=True)
        )
    if not is_clear:
        return Level(None, Pattern.of(timestep, values, None))
    changed = alike[0].pattern if alike and alike[0].value is not None else None
    return Level(moving, Pattern.of(timestep, values, moving), changed)
