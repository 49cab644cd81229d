"""Visible schedules: found in what the callers have, in the unit of the model's timestep."""

from __future__ import annotations

import sys
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pab_compile.runtime.caller import Callers
from pab_compile.runtime.visible_schedule import VisibleSchedule, find_schedules, holder_of

TIMESTEPS = (1000.0, 800.0, 500.0, 100.0)


def seen_from(
    variable: Any, timestep: float, dtype: torch.dtype = torch.float32
) -> list[VisibleSchedule]:
    """The schedules that are found in the variables of this function."""
    assert variable is not None
    callers = Callers([sys._getframe()])
    found = find_schedules(callers, timestep, dtype)
    assert all(schedule.holder is callers.runs[0] for schedule in found)
    callers.release()
    return found


WAYS = {
    "tensor": torch.tensor(TIMESTEPS),
    "whole numbers": torch.tensor([1000, 800, 500, 100]),
    "double": torch.tensor(TIMESTEPS, dtype=torch.float64),
    "list": list(TIMESTEPS),
    "tuple": TIMESTEPS,
    "array": np.asarray(TIMESTEPS, dtype=np.float32),
    "list of scalars": [torch.tensor(value) for value in TIMESTEPS],
    "list of rows": [torch.tensor([value] * 2) for value in TIMESTEPS],
    "attribute": SimpleNamespace(timesteps=torch.tensor(TIMESTEPS)),
    "attribute of an attribute": SimpleNamespace(
        scheduler=SimpleNamespace(timesteps=torch.tensor(TIMESTEPS))
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_schedule_is_found_however_it_is_held(way: str) -> None:
    (found,) = seen_from(WAYS[way], 1000.0)
    assert found.timesteps == TIMESTEPS
    assert found.has(1, 800.0)
    assert not found.has(1, 799.0)
    assert not found.has(4, 100.0)
    assert not found.has(-1, 100.0)


def test_image_to_image_sees_the_rest_of_the_schedule() -> None:
    (found,) = seen_from(TIMESTEPS, 500.0)
    assert found.timesteps == (500.0, 100.0)


@pytest.mark.parametrize(
    ("timestep", "expected"),
    [
        (0.8, (0.8, 0.5, 0.1)),
        (0.2, (0.2, 0.5, 0.9)),
        (8e5, (8e5, 5e5, 1e5)),
    ],
)
def test_the_model_may_have_another_unit(timestep: float, expected: tuple[float, ...]) -> None:
    (found,) = seen_from(TIMESTEPS, timestep)
    assert found.timesteps == pytest.approx(expected)


def test_a_schedule_of_sigmas_rises_in_the_model() -> None:
    (found,) = seen_from([1.0, 0.75, 0.5], 0.25)
    assert found.timesteps == (0.25, 0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_rounded_timestep_is_found(dtype: torch.dtype) -> None:
    schedule = torch.linspace(1, 0.013, 30)
    rounded = schedule.to(dtype).float().tolist()
    found = seen_from(schedule, rounded[0], dtype)[0]
    assert all(found.has(step, value) for step, value in enumerate(rounded))


def test_a_timestep_that_was_rounded_before_it_was_cast_is_found() -> None:
    (found,) = seen_from(torch.tensor([987.3, 612.9, 240.1]), 988.0)
    assert found.has(1, 612.0)


def test_a_whole_number_that_was_cut_from_a_timestep_is_found() -> None:
    (found,) = seen_from(torch.tensor([987.3, 612.9, 240.1]), 987, torch.int64)
    assert found.has(1, 612)
    assert not found.has(1, 611)


OTHERS = {
    "up and down": [1000.0, 500.0, 800.0],
    "one number": [1000.0],
    "two dimensions": torch.tensor([[1000.0, 500.0]]),
    "another number": [900.0, 500.0, 100.0],
    "truth values": torch.tensor([True, False]),
    "complex": torch.tensor([1000 + 0j, 500 + 0j]),
    "text": ["1000", "500"],
    "no memory": torch.empty(3, device="meta"),
    "a mixture": [torch.tensor(1000.0), torch.tensor([[500.0]])],
    "a class": SimpleNamespace,
    "inside a model": torch.nn.Module(),
    "its last": [1200.0, 1000.0],
}


@pytest.mark.parametrize("other", OTHERS)
def test_anything_else_is_no_schedule(other: str) -> None:
    module = OTHERS["inside a model"]
    module.table = torch.tensor(TIMESTEPS)  # type: ignore[attr-defined]
    assert seen_from(OTHERS[other], 1000.0) == []


def test_the_likeliest_comes_first() -> None:
    def outer() -> list[VisibleSchedule]:
        outer_schedule = [1000.0, 1.0]
        assert outer_schedule
        return inner()

    def inner() -> list[VisibleSchedule]:
        later, with_end = [2000.0, 1000.0, 3.0], [1000.0, 4.0, 2.0, 0.0]
        attribute = SimpleNamespace(timesteps=[1000.0, 5.0, 4.0, 3.0, 2.0])
        schedule = [1000.0, 6.0, 2.0]
        assert later
        assert with_end
        assert attribute
        assert schedule
        frame = sys._getframe()
        assert frame.f_back is not None
        return find_schedules(Callers([frame, frame.f_back]), 1000.0, torch.float32)

    assert [schedule.timesteps for schedule in outer()] == [
        (1000.0, 6.0, 2.0),
        (1000.0, 4.0, 2.0, 0.0),
        (1000.0, 5.0, 4.0, 3.0, 2.0),
        (1000.0, 3.0),
        (1000.0, 1.0),
    ]


def test_every_second_timestep() -> None:
    found = VisibleSchedule(TIMESTEPS, 1e-6).every(2)
    assert found.timesteps == (1000.0, 500.0)


def test_the_function_that_has_a_table_is_found_without_reading_it() -> None:
    table = torch.tensor(TIMESTEPS)
    base = table.as_strided((4,), (1,))
    callers = Callers([sys._getframe()])
    found = holder_of(callers, base), holder_of(callers, torch.tensor(TIMESTEPS))
    assert found == (callers.runs[0], None)


def test_a_timestep_that_is_expanded_is_not_its_table() -> None:
    def wrapper(timestep: torch.Tensor) -> bool:
        frame = sys._getframe()
        assert frame.f_back is not None
        callers = Callers([frame, frame.f_back])
        return holder_of(callers, timestep) is callers.runs[1]

    table = torch.tensor(TIMESTEPS)
    assert wrapper(table[1].expand(2))


def test_nothing_of_the_callers_is_kept() -> None:
    schedule: Any = torch.tensor(TIMESTEPS)
    gone = weakref.ref(schedule)
    callers = Callers([sys._getframe()])
    found = find_schedules(callers, 1000.0, torch.float32)
    callers.release()
    schedule = None
    assert found
    assert gone() is None
