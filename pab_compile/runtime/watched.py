"""Watched: what a piece computed from tensors that Python code made, with copies of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from .cache_entry import copy_of


@dataclass(eq=False)
class Watched:
    """The values of a piece, for as long as the tensors that Python makes have equal values.

    If they differ at the second call, they are assumed to differ at every step. Then nothing is
    kept, and nothing is compared any more.
    """

    _read: list[torch.Tensor] = field(default_factory=list)
    _values: list[torch.Tensor] | None = None
    _num_calls: int = 0
    _changes: bool = False

    def values(self, read: Sequence[torch.Tensor]) -> Sequence[torch.Tensor] | None:
        """The values that were computed from equal tensors; None if they must be computed.

        Args:
            read: the tensors that Python made this time.
        """
        self._num_calls += 1
        if self._values is None or self._changes:
            return None
        if all(map(_are_equal, self._read, read)):
            return self._values
        self._changes = self._num_calls == 2
        self.drop()
        return None

    def keep(self, read: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
        """Keep what was computed.

        Args:
            read: the tensors that Python made. It may write to them later.
            values: what was computed from them. The caller has made copies if others may write to
                them.
        """
        if self._changes:
            return
        memory = {tensor.untyped_storage().data_ptr() for tensor in read}
        self._read = [tensor.clone() for tensor in read]
        self._values = [
            copy_of(value) if value.untyped_storage().data_ptr() in memory else value
            for value in values
        ]

    def drop(self) -> None:
        """Keep nothing."""
        self._read, self._values = [], None

    def num_bytes(self) -> int:
        """Bytes of all that is kept."""
        held = (*self._read, *(self._values or ()))
        return sum(tensor.numel() * tensor.element_size() for tensor in held)


def _are_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    same_type = one.shape == other.shape and one.dtype == other.dtype
    return same_type and one.device == other.device and torch.equal(one, other)
