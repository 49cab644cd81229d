"""Kept tensors: what a cache entry holds in another dtype or place than it was computed in.

A dtype of one byte has a scale per row, the last dimension of a tensor. The scale maps the largest
finite magnitude of the row to the largest number of the dtype, 448. What is infinite or no number
is no number after that, and does not change the other elements of its row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from pab_compile.plans.cache_dtype import converted_bytes, has_scales, scale_dtype

from .transfers import Parcel, Transfers


@dataclass(frozen=True, eq=False)
class Kept:
    """One tensor, converted or sent to the host.

    Attributes:
        parts: its elements, without those that repeat memory, and the factors of the rows if there
            are any.
        shape: its sizes.
        stride: strides of the elements that do not repeat memory.
        dtype: what it was computed in.
    """

    parts: tuple[torch.Tensor | Parcel, ...]
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def request(self) -> None:
        """Begin to copy it back from the host, if it is there."""
        for part in self.parts:
            if not isinstance(part, torch.Tensor):
                part.request()

    def value(self) -> torch.Tensor:
        """The tensor in the dtype and with the strides that it was computed with."""
        data, *scale = (p if isinstance(p, torch.Tensor) else p.receive() for p in self.parts)
        whole = data
        if data.dtype != self.dtype or data.stride() != self.stride:
            size, device = data.shape, data.device
            whole = torch.empty_strided(size, self.stride, dtype=self.dtype, device=device)
            whole.copy_(data)
        for factor in scale:
            whole.mul_(factor)
        return whole.expand(self.shape)


Held = torch.Tensor | Kept
"""What a cache entry holds: a tensor as it was computed, or one that was converted or sent."""


def converted(tensor: torch.Tensor, kept_in: torch.dtype | None) -> Kept | None:
    """A tensor in another dtype; None if it is kept as it is (``plans.cache_dtype``)."""
    if kept_in is None or converted_bytes(tensor.shape, tensor.dtype, kept_in) is None:
        return None
    source = without_repeats(tensor)
    parts = _scaled(source, kept_in) if has_scales(kept_in) else (_cut(source, kept_in),)
    return Kept(parts, tensor.shape, source.stride(), tensor.dtype)


def sent(held: Held, transfers: Transfers) -> Kept:
    """What a cache entry holds once it is sent to the host."""
    if isinstance(held, torch.Tensor):
        source = without_repeats(held)
        held = Kept((source,), held.shape, source.stride(), held.dtype)
    parts = (transfers.send(p) if isinstance(p, torch.Tensor) else p for p in held.parts)
    return replace(held, parts=tuple(parts))


def value_of(held: Held) -> torch.Tensor:
    """The tensor that a cache entry holds."""
    return held.value() if isinstance(held, Kept) else held


class Size(NamedTuple):
    """Bytes of what is held, on the device and in the memory of the host."""

    device: int = 0
    host: int = 0

    def plus(self, other: Size, sign: int = 1) -> Size:
        """The sum of both, or the difference with a sign of -1."""
        return Size(self.device + sign * other.device, self.host + sign * other.host)

    def most(self, other: Size) -> Size:
        """The larger of both, on the device and on the host each."""
        return Size(max(self.device, other.device), max(self.host, other.host))

    @staticmethod
    def of(held: Iterable[Held]) -> Size:
        """The bytes of what cache entries hold."""
        device = host = 0
        for each in held:
            for part in each.parts if isinstance(each, Kept) else (each,):
                if isinstance(part, torch.Tensor):
                    device += part.numel() * part.element_size()
                else:
                    host += part.num_bytes
        return Size(device, host)


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
