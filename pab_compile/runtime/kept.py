"""Kept tensors: what a cache entry holds in another dtype than it was computed in.

A dtype of one byte has a scale per row, the last dimension of a tensor. The scale maps the largest
finite magnitude of the row to the largest number of the dtype, 448. What is infinite or no number
is no number after that, and does not change the other elements of its row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pab_compile.plans.cache_dtype import converted_bytes, has_scales, scale_dtype


@dataclass(frozen=True, eq=False)
class Kept:
    """One tensor, converted.

    Attributes:
        data: its elements, without those that repeat memory.
        scale: factor of every row; None without scales.
        shape: its sizes.
        stride: strides of the elements that do not repeat memory.
        dtype: what it was computed in.
    """

    data: torch.Tensor
    scale: torch.Tensor | None
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def value(self) -> torch.Tensor:
        """The tensor in the dtype and with the strides that it was computed with."""
        size, device = self.data.shape, self.data.device
        whole = torch.empty_strided(size, self.stride, dtype=self.dtype, device=device)
        whole.copy_(self.data)
        if self.scale is not None:
            whole.mul_(self.scale)
        return whole.expand(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes."""
        parts = (self.data,) if self.scale is None else (self.data, self.scale)
        return sum(part.numel() * part.element_size() for part in parts)


Held = torch.Tensor | Kept
"""What a cache entry holds: a tensor as it was computed, or a converted one."""


def converted(tensor: torch.Tensor, kept_in: torch.dtype | None) -> Kept | None:
    """A tensor in another dtype; None if it is kept as it is (``plans.cache_dtype``)."""
    if kept_in is None or converted_bytes(tensor.shape, tensor.dtype, kept_in) is None:
        return None
    source = without_repeats(tensor)
    data, scale = _scaled(source, kept_in) if has_scales(kept_in) else (_cut(source, kept_in), None)
    return Kept(data, scale, tensor.shape, source.stride(), tensor.dtype)


def value_of(held: Held) -> torch.Tensor:
    """The tensor that a cache entry holds."""
    return held.value() if isinstance(held, Kept) else held


def bytes_of(held: Held) -> int:
    """Bytes that a cache entry needs for it."""
    return held.num_bytes if isinstance(held, Kept) else held.numel() * held.element_size()


def without_repeats(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, with only one position along every dimension that repeats memory."""
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _cut(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A conversion that keeps finite numbers finite."""
    most = torch.finfo(dtype).max
    if torch.finfo(tensor.dtype).max > 2 * most:
        tensor = torch.where(tensor.isinf(), tensor, tensor.clamp(-most, most))
    return tensor.to(dtype)


def _scaled(tensor: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of a tensor, divided by their scales, and the scales."""
    finite = tensor.nan_to_num(0.0, 0.0, 0.0)
    largest = torch.linalg.vector_norm(finite, torch.inf, dim=-1, keepdim=True)
    wide = scale_dtype(tensor.dtype)
    scale = largest.to(wide) / torch.finfo(dtype).max
    scale.clamp_(min=torch.finfo(wide).tiny)  # a row of zeros
    rows = tensor / scale
    rows.masked_fill_(rows.isinf(), torch.nan)  # else it would become the largest number
    return rows.to(dtype), scale
