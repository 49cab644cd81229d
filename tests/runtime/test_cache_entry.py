"""Cache entries: a short history of outputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pab_compile.runtime.cache_entry import CacheEntry, copy_of


def filled(*steps: int, length: int = 2) -> CacheEntry:
    cached = CacheEntry()
    for step in steps:
        cached.store(step, (torch.full((4,), float(step)),), length)
    return cached


def squares(timesteps: list[float | None]) -> CacheEntry:
    """The square of the timestep at the steps 0, 1, ...; of the step where there is none."""
    cached = CacheEntry()
    for step, timestep in enumerate(timesteps):
        x = float(step) if timestep is None else timestep
        cached.store(step, (torch.tensor([x**2], dtype=torch.float64),), 3, timestep)
    return cached


def test_order_0_repeats_the_very_tensor_that_was_stored() -> None:
    cached, tensor = CacheEntry(), torch.randn(3)
    cached.store(0, (tensor,), 1)
    assert cached.load(5, 0)[0] is tensor


@given(
    st.floats(-10, 10),
    st.floats(-10, 10),
    st.lists(st.integers(0, 50), min_size=3, max_size=3, unique=True).map(sorted),
)
def test_order_1_continues_a_line_in_the_step(a: float, b: float, steps: list[int]) -> None:
    cached = CacheEntry()
    for step in steps[:2]:
        cached.store(step, (torch.tensor([a + b * step], dtype=torch.float64),), 2)
    expected = torch.tensor([a + b * steps[2]], dtype=torch.float64)
    assert torch.allclose(cached.load(steps[2], 1)[0], expected, atol=1e-9)


@given(
    st.tuples(*[st.floats(-10, 10)] * 3),
    st.lists(st.integers(0, 50), min_size=4, max_size=4, unique=True).map(sorted),
)
def test_order_2_continues_a_parabola_in_the_step(
    factors: tuple[float, float, float], steps: list[int]
) -> None:
    def value(step: int) -> torch.Tensor:
        a, b, c = factors
        return torch.tensor([a + b * step + c * step**2], dtype=torch.float64)

    cached = CacheEntry()
    for step in steps[:3]:
        cached.store(step, (value(step),), 3)
    assert torch.allclose(cached.load(steps[3], 2)[0], value(steps[3]), rtol=1e-9, atol=1e-7)


def test_in_timesteps_order_2_continues_a_parabola_of_the_timestep() -> None:
    cached = squares([1000.0, 990.0, 900.0])
    assert cached.load(3, 2, 400.0)[0].item() == pytest.approx(400.0**2)
    assert cached.load(3, 2)[0].item() != pytest.approx(400.0**2, rel=0.1)


@pytest.mark.parametrize(
    ("timesteps", "now"),
    [
        ([9.0, 9.0, 8.0], 7.0),  # a scheduler that repeats a timestep
        ([9.0, 8.0, 7.0], 7.0),
        ([9.0, 8.0, 7.0], 8.5),
        ([None, 8.0, 7.0], 6.0),
        ([9.0, 8.0, 7.0], None),
    ],
)
def test_timesteps_that_no_polynomial_can_follow_give_way_to_steps(
    timesteps: list[float | None], now: float | None
) -> None:
    cached = squares(timesteps)
    steps = CacheEntry()
    for step, value in enumerate([t if t is not None else 0.0 for t in timesteps]):
        steps.store(step, (torch.tensor([value**2], dtype=torch.float64),), 3)
    assert torch.equal(cached.load(4, 2, now)[0], steps.load(4, 2)[0])


def test_higher_orders_fall_back_to_what_the_history_allows() -> None:
    cached = CacheEntry()
    for step, (order, expected) in enumerate([(0, 0.0), (1, 5.0), (2, 25.0)]):
        cached.store(step, (torch.tensor([float(step**2)]),), 3)
        assert torch.equal(cached.load(5, order)[0], cached.load(5, 2)[0])
        assert cached.load(5, 2)[0].item() == pytest.approx(expected)


def test_outputs_of_steps_that_do_not_count_are_not_used() -> None:
    cached = squares([None, None, None])
    assert cached.load(4, 2, first_step=1)[0].item() == pytest.approx(
        10
    )  # the line through 1 and 4
    assert cached.load(4, 2, first_step=2)[0].item() == 4


def test_order_1_repeats_while_there_is_one_output() -> None:
    assert filled(3).load(5, 1)[0].tolist() == [3.0] * 4


def test_order_1_repeats_what_cannot_be_interpolated() -> None:
    cached = CacheEntry()
    for step in (0, 1):
        cached.store(step, (torch.tensor([step]), torch.tensor([float(step)])), 2)
    whole, real = cached.load(3, 1)
    assert (whole.tolist(), real.tolist()) == ([1], [3.0])


def test_prediction_keeps_the_dtype() -> None:
    cached = CacheEntry()
    for step in (0, 1, 2):
        cached.store(step, (torch.full((2,), step, dtype=torch.bfloat16),), 3)
    for order in (1, 2):
        assert cached.load(3, order)[0].dtype == torch.bfloat16
        assert cached.load(3, order)[0].tolist() == [3.0] * 2


def laid_out(layout: str) -> torch.Tensor:
    """A tensor of shape (2, 3, 4) in which every element is another, but for what repeats."""
    whole = torch.arange(2 * 5 * 4.0).reshape(2, 5, 4)
    return {
        "packed": lambda: whole[:, :3].contiguous(),
        "part of a larger one": lambda: whole[:, 2:],
        "permuted": lambda: whole[:, :3].permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "repeated": lambda: whole[:, :3, :1].expand(-1, -1, 4),
    }[layout]()


LAYOUTS = ("packed", "part of a larger one", "permuted", "repeated")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("order", [1, 2])
def test_prediction_keeps_the_layout_that_pieces_are_compiled_for(order: int, layout: str) -> None:
    cached, tensor = CacheEntry(), laid_out(layout)
    for step in (0, 1, 2):
        stored = copy_of(tensor)
        (stored[..., :1] if layout == "repeated" else stored).mul_(step)
        cached.store(step, (stored,), 3)
    (found,) = cached.load(4, order)
    assert found.stride() == tensor.stride()
    torch.testing.assert_close(found, tensor * 4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_copy_has_the_layout_and_other_memory(layout: str) -> None:
    tensor = laid_out(layout)
    copy = copy_of(tensor)
    assert torch.equal(copy, tensor) and copy.stride() == tensor.stride()
    assert copy.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


def test_prediction_changes_nothing_that_is_stored() -> None:
    cached = filled(0, 1, 2, length=3)
    before = [cached.load(9, order)[0].clone() for order in (0, 1, 2)]
    assert [cached.load(9, order)[0].tolist() for order in (0, 1, 2)] == [
        t.tolist() for t in before
    ]


@given(st.integers(1, 4), st.integers(1, 10))
def test_at_most_so_many_outputs_are_kept(length: int, num_stored: int) -> None:
    cached = filled(*range(num_stored), length=length)
    assert cached.num_bytes() == 16 * min(length, num_stored)
    assert cached.last_step == num_stored - 1


def test_dropping_keeps_the_newest() -> None:
    cached = filled(0, 1, 2, length=3)
    cached.drop_older_than(1)
    assert (cached.last_step, cached.num_bytes()) == (2, 16)
    cached.drop_older_than(0)
    assert (cached.last_step, cached.num_bytes()) == (None, 0)


def test_an_empty_slot_holds_nothing() -> None:
    cached = filled(0, 1)
    cached.clear()
    assert (cached.last_step, cached.num_bytes()) == (None, 0)
    assert CacheEntry().last_step is None
