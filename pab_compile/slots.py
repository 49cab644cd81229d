"""Slots: the cached outputs of one site in one lane."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True, eq=False)
class Output:
    """What a site computed at one step."""

    step: int
    tensors: Tensors


class Slot:
    """A short history of a site's outputs, newest last."""

    def __init__(self) -> None:
        self._history: deque[Output] = deque()

    @property
    def last_step(self) -> int | None:
        """Step at which the newest output was computed, or None when the slot is empty."""
        return self._history[-1].step if self._history else None

    def store(self, step: int, tensors: Tensors, length: int) -> None:
        """Keep an output, and at most ``length`` in all."""
        self._history.append(Output(step, tensors))
        while len(self._history) > length:
            self._history.popleft()

    def load(self, step: int, order: int) -> Tensors:
        """Repeat the newest output (order 0), or extrapolate linearly in the step (order 1).

        Falls back to order 0 while only one output is there.
        """
        newest = self._history[-1]
        if order == 0 or len(self._history) < 2:
            return newest.tensors
        before = self._history[-2]
        weight = (step - before.step) / (newest.step - before.step)
        return tuple(
            torch.lerp(old, new, weight) if new.is_floating_point() else new
            for old, new in zip(before.tensors, newest.tensors, strict=True)
        )

    def clear(self) -> None:
        """Free everything."""
        self._history.clear()

    def drop_older_than(self, length: int) -> None:
        """Keep only the newest ``length`` outputs."""
        while len(self._history) > length:
            self._history.popleft()

    def num_bytes(self) -> int:
        """Bytes held."""
        return sum(t.numel() * t.element_size() for o in self._history for t in o.tensors)
