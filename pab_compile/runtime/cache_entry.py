"""Cache entries: the cached outputs of one site in one lane."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .kept import Held, Kept, Size, converted, sent, value_of, without_repeats
from .transfers import Transfers

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True, eq=False)
class Output:
    """What is kept of what a site computed at one step, and the timestep if it is known."""

    step: int
    kept: tuple[Held, ...]
    timestep: float | None = None


class CacheEntry:
    """The last outputs of a site, the newest last."""

    def __init__(self) -> None:
        self._history: deque[Output] = deque()

    @property
    def last_step(self) -> int | None:
        """Step at which the newest output was computed, or None when the entry is empty."""
        return self._history[-1].step if self._history else None

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of the outputs, the oldest first."""
        return tuple(output.step for output in self._history)

    def store(
        self, step: int, kept: tuple[Held, ...], length: int, timestep: float | None = None
    ) -> None:
        """Add an output. At most ``length`` outputs stay."""
        self.drop_older_than(max(length - 1, 0))  # before, so that never one more is held
        self._history.append(Output(step, kept, timestep))
        self.drop_older_than(length)

    def load(
        self,
        step: int,
        order: int,
        timestep: float | None = None,
        first_step: int = 0,
        weights: Sequence[float] | None = None,
    ) -> Tensors:
        """Predict the output of a step from the newest ``order + 1`` outputs.

        Without weights it is the polynomial through them.

        What was converted is first converted back. Order 0 repeats the newest output, order 1
        follows a line, order 2 a parabola. With fewer outputs, the order is lower.

        Args:
            step: the step to predict.
            order: degree of the polynomial.
            timestep: the step's timestep, to predict in timesteps. None predicts in steps, and so
                do timesteps that are unknown or do not strictly rise or fall.
            first_step: outputs of earlier steps do not count.
            weights: one per output, the oldest first.
        """
        used = self._used(order, first_step)
        now = Output(step, (), timestep)
        outputs = [tuple(map(value_of, output.kept)) for output in used]
        if weights is not None:
            return combine(outputs, weights)
        return extrapolate(outputs, _positions([*used, now]))

    def newest(self, count: int) -> list[Tensors]:
        """The newest outputs, the oldest first."""
        return [tuple(map(value_of, output.kept)) for output in list(self._history)[-count:]]

    def combined(self, weights: Sequence[float]) -> Tensors:
        """The weighted sum of the newest outputs, one weight per output, the oldest first."""
        return combine(self.newest(len(weights)), weights)

    def send(self, transfers: Transfers) -> None:
        """Send all outputs to the host."""
        for _ in range(len(self._history)):
            output = self._history.popleft()
            kept = tuple(sent(held, transfers) for held in output.kept)
            self._history.append(Output(output.step, kept, output.timestep))

    def narrow(self, dtype: torch.dtype) -> None:
        """Convert all outputs that are as they were computed."""
        for _ in range(len(self._history)):
            output = self._history.popleft()
            kept = tuple(
                held if isinstance(held, Kept) else converted(held, dtype) or held
                for held in output.kept
            )
            self._history.append(Output(output.step, kept, output.timestep))

    def request(self, order: int, first_step: int = 0) -> None:
        """Begin to copy what ``load`` will read from the host, if it is there."""
        for output in self._used(order, first_step):
            for held in output.kept:
                if isinstance(held, Kept):
                    held.request()

    def _used(self, order: int, first_step: int) -> list[Output]:
        return [output for output in self._history if output.step >= first_step][-order - 1 :]

    def clear(self) -> None:
        """Free all outputs."""
        self._history.clear()

    def drop_older_than(self, length: int) -> None:
        """Keep only the newest ``length`` outputs."""
        while len(self._history) > length:
            self._history.popleft()

    def drop_from(self, step: int) -> None:
        """Drop the outputs of a step and of later ones."""
        while self._history and self._history[-1].step >= step:
            self._history.pop()

    def num_bytes(self) -> int:
        """Bytes of the outputs on the device."""
        return self.size().device

    def size(self) -> Size:
        """Bytes of the outputs."""
        return Size.of(held for output in self._history for held in output.kept)


def extrapolate(outputs: Sequence[Tensors], positions: Sequence[float]) -> Tensors:
    """The polynomial through one to three outputs, at a position beyond them.

    It runs one ``lerp`` kernel per degree, with numbers as arguments. So nothing is compiled, sent
    to the device or read from it, and half precision is rounded once per kernel. The result has the
    strides of the newest output.

    Args:
        outputs: oldest first, all of the same layout. Tensors that are not of floating point are
            taken from the newest output.
        positions: one per output, then the one to predict. They strictly rise or fall.
    """
    if len(outputs) == 1:
        return outputs[0]
    *_, before, last, now = positions
    if len(outputs) == 2:
        weights = ((now - before) / (last - before),)
    else:
        # Lagrange's weights, grouped so that nothing divides by 0: ``newest`` is above 1.
        first = positions[0]
        newest = (now - first) * (now - before) / ((last - first) * (last - before))
        middle = (now - first) * (now - last) / ((before - first) * (before - last))
        weights = (middle / (1 - newest), newest)
    return tuple(_interpolate(tensors, weights) for tensors in zip(*outputs, strict=True))


def combine(outputs: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
    """A weighted sum of outputs, rounded once. It has the strides of the newest output.

    Args:
        outputs: oldest first, all of the same layout. Tensors that are not of floating point are
            taken from the newest output.
        weights: one per output.
    """
    return tuple(_weighted(tensors, weights) for tensors in zip(*outputs, strict=True))


def _weighted(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    newest = tensors[-1]
    if not newest.is_floating_point():
        return newest
    *others, last = map(without_repeats, tensors)
    result = last.to(torch.promote_types(last.dtype, torch.float32)) * weights[-1]
    for other, weight in zip(others, weights[:-1], strict=True):
        result.add_(other, alpha=weight)
    return _empty_as(last).copy_(result).expand(newest.shape)


def _interpolate(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    newest = tensors[-1]
    if not newest.is_floating_point():
        return newest
    first, second, *others = map(without_repeats, tensors)
    result = _empty_as(without_repeats(newest))
    torch.lerp(first, second, weights[0], out=result)
    for other, weight in zip(others, weights[1:], strict=True):
        result.lerp_(other, weight)
    return result.expand(newest.shape)


def copy_of(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with the strides of the tensor.

    Compiled pieces accept only the strides that they were compiled for. ``clone`` would change the
    strides of a part of a larger tensor.
    """
    source = without_repeats(tensor)
    return _empty_as(source).copy_(source).expand(tensor.shape)


def difference(end: torch.Tensor, start: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is cached of a stretch: its end minus its start, with the strides of the end."""
    kept = torch.empty_strided(end.shape, end.stride(), dtype=dtype, device=end.device)
    return torch.sub(end, start, out=kept)


def minus(outputs: Tensors, others: Tensors) -> Tensors:
    """Outputs minus others, with their strides. Tensors that are not of floating point stay."""
    return tuple(map(_less, outputs, others))


def _less(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    if not one.is_floating_point():
        return one
    single, result = without_repeats(one), _empty_as(without_repeats(one))
    return torch.sub(single, without_repeats(other), out=result).expand(one.shape)


def end_of(start: torch.Tensor, difference: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The end of a stretch: its start plus a difference, with the strides of the difference."""
    strides = difference.stride()
    end = torch.empty_strided(difference.shape, strides, dtype=dtype, device=start.device)
    return torch.add(start, difference, out=end)


def _empty_as(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )


def _positions(outputs: Sequence[Output]) -> list[float]:
    """Timesteps if they are known and strictly rise or fall, else steps."""
    timesteps = [output.timestep for output in outputs]
    known = [timestep for timestep in timesteps if timestep is not None]
    if len(known) == len(timesteps):
        pairs = list(itertools.pairwise(known))
        if all(a < b for a, b in pairs) or all(a > b for a, b in pairs):
            return known
    return [float(output.step) for output in outputs]
