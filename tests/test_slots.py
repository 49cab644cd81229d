"""Slots: a short history of outputs."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from pab_compile.slots import Slot


def filled(*steps: int, length: int = 2) -> Slot:
    slot = Slot()
    for step in steps:
        slot.store(step, (torch.full((4,), float(step)),), length)
    return slot


def test_order_0_repeats_the_very_tensor_that_was_stored() -> None:
    slot, tensor = Slot(), torch.randn(3)
    slot.store(0, (tensor,), 1)
    assert slot.load(5, 0)[0] is tensor


@given(
    st.floats(-10, 10),
    st.floats(-10, 10),
    st.lists(st.integers(0, 50), min_size=3, max_size=3, unique=True).map(sorted),
)
def test_order_1_continues_a_line_in_the_step(a: float, b: float, steps: list[int]) -> None:
    slot = Slot()
    for step in steps[:2]:
        slot.store(step, (torch.tensor([a + b * step], dtype=torch.float64),), 2)
    expected = torch.tensor([a + b * steps[2]], dtype=torch.float64)
    assert torch.allclose(slot.load(steps[2], 1)[0], expected, atol=1e-9)


def test_order_1_repeats_while_there_is_one_output() -> None:
    assert filled(3).load(5, 1)[0].tolist() == [3.0] * 4


def test_order_1_repeats_what_cannot_be_interpolated() -> None:
    slot = Slot()
    for step in (0, 1):
        slot.store(step, (torch.tensor([step]), torch.tensor([float(step)])), 2)
    whole, real = slot.load(3, 1)
    assert (whole.tolist(), real.tolist()) == ([1], [3.0])


def test_prediction_keeps_the_dtype() -> None:
    slot = Slot()
    for step in (0, 1):
        slot.store(step, (torch.full((2,), step, dtype=torch.bfloat16),), 2)
    assert slot.load(2, 1)[0].dtype == torch.bfloat16


def test_prediction_changes_nothing_that_is_stored() -> None:
    slot = filled(0, 1)
    slot.load(9, 1)
    assert slot.load(9, 0)[0].tolist() == [1.0] * 4


@given(st.integers(1, 4), st.integers(1, 10))
def test_at_most_so_many_outputs_are_kept(length: int, num_stored: int) -> None:
    slot = filled(*range(num_stored), length=length)
    assert slot.num_bytes() == 16 * min(length, num_stored)
    assert slot.last_step == num_stored - 1


def test_dropping_keeps_the_newest() -> None:
    slot = filled(0, 1, 2, length=3)
    slot.drop_older_than(1)
    assert (slot.last_step, slot.num_bytes()) == (2, 16)
    slot.drop_older_than(0)
    assert (slot.last_step, slot.num_bytes()) == (None, 0)


def test_an_empty_slot_holds_nothing() -> None:
    slot = filled(0, 1)
    slot.clear()
    assert (slot.last_step, slot.num_bytes()) == (None, 0)
    assert Slot().last_step is None
