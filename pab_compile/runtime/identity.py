"""Identity: whether a tensor is the one that was seen before."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .clock import version_of


@dataclass(frozen=True, eq=False)
class Identity:
    """Which tensor this is: its memory, version and layout.

    It holds the tensor, so that no other tensor can get its memory. Inference tensors have no
    version. A copy of them is held and compared instead.
    """

    tensor: torch.Tensor
    copy: torch.Tensor | None
    key: tuple[object, ...]

    @staticmethod
    def of(tensor: torch.Tensor, *, remember: bool = True) -> Identity:
        """The identity of a tensor as it is now.

        Args:
            tensor: the tensor.
            remember: whether to copy an inference tensor.
        """
        key = (tensor.data_ptr(), version_of(tensor), tensor.shape, tensor.stride(), tensor.dtype)
        copy = tensor.clone() if remember and tensor.is_inference() else None
        return Identity(tensor, copy, key)

    @property
    def seen(self) -> torch.Tensor:
        """The tensor, or the copy of it."""
        return self.tensor if self.copy is None else self.copy

    def is_same(self, other: torch.Tensor) -> bool:
        """Whether a tensor is this one unchanged, or has equal values.

        Values are compared only if the memory differs, since that synchronises an accelerator.
        """
        if self.copy is None and Identity.of(other, remember=False).key == self.key:
            return True
        if self.copy is None and version_of(self.tensor) != self.key[1]:
            return False
        mine = self.seen
        return (
            mine.shape == other.shape
            and mine.dtype == other.dtype
            and mine.device == other.device
            and torch.equal(mine, other)
        )

    def is_equal(self, other: Identity) -> bool:
        """Whether two tensors are one, or had equal values when they were seen."""
        if self.copy is None and self.key == other.key:
            return True
        if other.copy is None and version_of(other.tensor) != other.key[1]:
            return False
        return self.is_same(other.seen)

    def is_same_memory(self, other: torch.Tensor) -> bool:
        """Whether a tensor is this one unchanged. Values are not compared."""
        return self.copy is None and Identity.of(other, remember=False).key == self.key

    def shares_memory(self, other: torch.Tensor) -> bool:
        """Whether a tensor is a part of the memory that this one is a part of, unchanged."""
        mine = self.tensor.untyped_storage().data_ptr()
        return mine == other.untyped_storage().data_ptr() and version_of(other) == self.key[1]
