"""The clock: tables are recognised without looking twice, values are read otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pab_compile.runtime.clock import is_schedule, read_timestep, version_of

TABLE = [980, 660, 330, 0]


class Reads(TorchDispatchMode):
    """Counts reads of a tensor's value by the host."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
@pytest.mark.parametrize("step", range(4))
def test_a_view_into_a_table_tells_its_place_and_the_table(step: int, dtype: torch.dtype) -> None:
    table = torch.tensor(TABLE, dtype=dtype)
    for view in (table[step], table[step].expand(3), table[step : step + 1], table[step][None]):
        reading = read_timestep(view)
        assert (reading.value, reading.index) == (TABLE[step], step)
        assert reading.table is not None
        assert reading.table.values == tuple(TABLE)


def test_a_known_table_is_not_read_again() -> None:
    table = torch.tensor(TABLE)
    known = read_timestep(table[0]).table
    with Reads() as reads:
        readings = [read_timestep(table[i].expand(2), [known]) for i in range(4)]
    assert reads.count == 0
    assert [reading.value for reading in readings] == TABLE
    assert all(reading.table is known for reading in readings)


def test_a_table_that_was_written_to_is_read_anew() -> None:
    table = torch.tensor(TABLE)
    known = read_timestep(table[0]).table
    table[1] = 700
    reading = read_timestep(table[1], [known])
    assert reading.table is not known
    assert reading.value == 700


def test_another_table_is_not_taken_for_the_known_one() -> None:
    known = read_timestep(torch.tensor(TABLE)[0]).table
    other = torch.tensor([900, 500, 100, 0])
    reading = read_timestep(other[1], [known])
    assert (reading.value, reading.index) == (500, 1)
    assert reading.table is not known


@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 1)])
def test_a_timestep_of_its_own_is_read_by_value(shape: tuple[int, ...]) -> None:
    reading = read_timestep(torch.full(shape, 660.0))
    assert (reading.value, reading.index, reading.table) == (660.0, None, None)


def test_rows_at_different_timesteps_have_no_value() -> None:
    assert read_timestep(torch.tensor([660, 330])).value is None


def test_tokens_that_stand_still_do_not_count() -> None:
    reading = read_timestep(torch.tensor([[0, 0, 660, 660]]))
    assert (reading.value, reading.index, reading.table) == (660, None, None)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([5, 9, 3], id="up and down"),
        pytest.param([5, 5], id="constant"),
        pytest.param([5], id="one"),
        pytest.param([5, float("nan")], id="not a number"),
        pytest.param([1e9, 5], id="beyond any timestep"),
    ],
)
def test_numbers_that_cannot_be_timesteps_are_no_table(values: list[float]) -> None:
    assert not is_schedule(values)
    assert read_timestep(torch.tensor(values)[0]).table is None


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=50, unique=True), st.booleans())
def test_whatever_runs_in_one_direction_is_a_schedule(values: list[int], falling: bool) -> None:
    assert is_schedule(sorted(values, reverse=falling))


def test_a_schedule_may_repeat_a_timestep() -> None:
    assert is_schedule([981, 961, 961, 941])


def test_inference_tensors_have_no_version_and_can_be_read() -> None:
    with torch.inference_mode():
        table = torch.tensor(TABLE)
    assert version_of(table) == 0
    assert read_timestep(table[2]).value == 330
