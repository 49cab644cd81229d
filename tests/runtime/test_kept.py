"""Kept tensors: conversion to a narrower dtype and back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pab_compile.plans.cache_dtype import CACHE_DTYPES, converted_bytes
from pab_compile.runtime.kept import Kept, Size, converted, sent, value_of

FP8, HALF, BRAIN = torch.float8_e4m3fn, torch.float16, torch.bfloat16
PRECISION = {FP8: 2.0**-4, HALF: 2.0**-11, BRAIN: 2.0**-8}
WIDER = [
    (wide, kept)
    for kept in CACHE_DTYPES.values()
    for wide in (torch.float64, torch.float32, BRAIN, HALF)
    if wide.itemsize > kept.itemsize
]
VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "whole": lambda x: x,
    "transposed": lambda x: x.transpose(0, 2),
    "part of a larger one": lambda x: x[:, 1:4, ::2],
    "repeated": lambda x: x[:, :1].expand(-1, 5, -1),
    "repeated along rows": lambda x: x[..., :1].expand(-1, -1, 16),
}


def tensors_of(kept: Kept) -> list[torch.Tensor]:
    return [part for part in kept.parts if isinstance(part, torch.Tensor)]


def back(tensor: torch.Tensor, kept_in: torch.dtype) -> torch.Tensor:
    kept = converted(tensor, kept_in)
    assert kept is not None
    assert tensors_of(kept)[0].dtype == kept_in
    return value_of(kept)


@pytest.mark.parametrize(("wide", "kept_in"), WIDER, ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_it_comes_back_alike(wide: torch.dtype, kept_in: torch.dtype, view: str) -> None:
    torch.manual_seed(0)
    tensor = VIEWS[view]((torch.randn(6, 6, 16, dtype=torch.float64) * 100).to(wide))
    found = back(tensor, kept_in)
    assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
    assert found.stride() == tensor.stride()
    error = (found.double() - tensor.double()).abs()
    row = tensor.double().abs().amax(-1, keepdim=True) if kept_in is FP8 else 0.0
    bound = PRECISION[kept_in] * tensor.double().abs() + 2**-16 * row  # below: subnormal numbers
    assert (error <= bound * (1 + PRECISION.get(wide, 1e-6))).all()
    assert view != "whole" or error.any()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(8),
        torch.ones(8, dtype=torch.bool),
        torch.ones(8, dtype=torch.complex64),
        torch.tensor(3.0),
        torch.randn(8, 4, dtype=HALF),
        torch.randn(8, 4, dtype=BRAIN),
        torch.randn(8, 4).to(FP8),
    ],
    ids=lambda x: f"{x.dtype}",
)
def test_what_is_no_wider_number_of_floating_point_is_kept_as_it_is(tensor: torch.Tensor) -> None:
    kept_in = FP8 if tensor.dtype == FP8 else HALF
    assert converted(tensor, kept_in) is None
    assert converted(tensor, None) is None
    assert value_of(tensor) is tensor


def test_rows_so_short_that_scales_take_more_are_kept_as_they_are() -> None:
    rows = torch.randn(8, 3, 4, dtype=BRAIN)
    assert converted(rows, FP8) is None  # 4 bytes and a scale of 4, instead of 8
    assert converted(rows.float(), FP8) is not None


@pytest.mark.parametrize(("wide", "kept_in"), WIDER, ids=str)
def test_bytes_are_those_that_were_predicted(wide: torch.dtype, kept_in: torch.dtype) -> None:
    tensor = torch.randn(3, 6, 16).to(wide)
    kept = converted(tensor, kept_in)
    assert kept is not None
    held = sum(part.untyped_storage().nbytes() for part in tensors_of(kept))
    assert Size(held) == Size.of([kept])
    assert held == converted_bytes(tensor.shape, wide, kept_in)
    assert held < Size.of([tensor]).device


def test_every_row_has_a_scale_of_its_own() -> None:
    magnitudes = torch.tensor([1e-30, 1e-8, 1.0, 1e8, 1e30])[:, None]
    rows = magnitudes * torch.randn(5, 64)
    error = (back(rows, FP8).double() - rows.double()).norm(dim=1) / rows.double().norm(dim=1)
    assert (error < 0.04).all()
    assert torch.allclose(back(rows, FP8).abs().amax(1), rows.abs().amax(1), rtol=1e-6, atol=0)


def test_a_row_of_zeros_stays_zero() -> None:
    rows = torch.randn(4, 64)
    rows[1] = 0
    found = back(rows, FP8)
    assert not found[1].any()
    assert found.isfinite().all()


@pytest.mark.parametrize("wide", [torch.float32, BRAIN], ids=str)
def test_scales_leave_what_is_not_finite_where_it_is(wide: torch.dtype) -> None:
    rows = torch.randn(4, 64).to(wide)
    rows[0, 3], rows[1, 5], rows[2, 7] = torch.nan, torch.inf, -torch.inf
    found = back(rows, FP8)
    assert torch.equal(found.isfinite(), rows.isfinite())
    finite = torch.where(rows.isfinite(), rows, 0)
    assert torch.equal(torch.where(found.isfinite(), found, 0), back(finite, FP8))


@pytest.mark.parametrize("kept_in", [HALF, BRAIN], ids=str)
def test_without_scales_what_is_not_finite_stays_as_it_is(kept_in: torch.dtype) -> None:
    rows = torch.tensor([[1.0, torch.inf, -torch.inf, torch.nan]])
    found = back(rows, kept_in)
    assert found[0, :3].tolist() == [1.0, torch.inf, -torch.inf]
    assert found[0, 3].isnan()


def test_numbers_beyond_float16_become_its_largest() -> None:
    rows = torch.tensor([[1e6, -1e6, 65519.0, 70000.0]])
    assert back(rows, HALF)[0].tolist() == [65504.0, -65504.0, 65504.0, 65504.0]


class Arrived:
    """A parcel that came back at once, in the layout of the host."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor.contiguous()
        self.num_bytes = tensor.numel() * tensor.element_size()

    def request(self) -> None:
        pass

    def receive(self) -> torch.Tensor:
        return self._tensor

    @staticmethod
    def send(tensor: torch.Tensor) -> Arrived:
        return Arrived(tensor)


@pytest.mark.parametrize("kept_in", [None, HALF, FP8], ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_from_the_host_it_comes_back_with_its_strides(
    kept_in: torch.dtype | None, view: str
) -> None:
    tensor = VIEWS[view](torch.randn(6, 6, 16))
    held = converted(tensor, kept_in) or tensor
    away = sent(held, Arrived)  # type: ignore[arg-type]
    assert Size.of([away]).device == 0
    assert Size.of([away]).host <= Size.of([held]).device
    found = value_of(away)
    assert (found.shape, found.stride(), found.dtype) == (
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
    )
    assert torch.equal(found, value_of(held))
