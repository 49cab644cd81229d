"""Evenly spaced timesteps say when no step follows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from pab_compile.runtime.spacing import has_bounds, is_at_end

ENDS: dict[str, tuple[Sequence[float], torch.dtype]] = {
    "0 is the last": ([300.0, 200.0, 100.0, 0.0], torch.float32),
    "0 would follow": ([1 - n / 7 for n in range(7)], torch.float32),
    "rising to 1": ([n / 7 for n in range(7)], torch.float32),
    "rising to 1000": ([800.0, 850.0, 900.0, 950.0], torch.float32),
    "whole numbers": ([981, 655, 329, 3], torch.int64),
    "rounded to bfloat16": (
        torch.linspace(1, 0.1, 10).bfloat16().double().tolist(),
        torch.bfloat16,
    ),
}


@pytest.mark.parametrize("case", ENDS)
def test_only_the_last_step_is_at_the_end(case: str) -> None:
    timesteps, dtype = ENDS[case]
    found = [is_at_end(timesteps[: step + 1], dtype) for step in range(len(timesteps))]
    # A step at 0 may follow one that could be the last.
    assert found == [False] * (len(timesteps) - 1 - (timesteps[-1] == 0)) + [True] * (
        1 + (timesteps[-1] == 0)
    )


@pytest.mark.parametrize(
    "timesteps", [[], [0.0], [500.0, 0.0], [900.0, 500.0, 50.0], [1000.0, 500.0, 250.0, 125.0]]
)
def test_uneven_timesteps_and_few_of_them_say_nothing(timesteps: list[float]) -> None:
    assert not is_at_end(timesteps, torch.float32)


@pytest.mark.parametrize("rising", [False, True])
def test_timesteps_that_went_past_an_end_are_not_at_it(rising: bool) -> None:
    timesteps = [10 - 20 * n / 11 for n in range(12)]  # as logarithms of noise go
    timesteps = timesteps[::-1] if rising else timesteps
    found = [is_at_end(timesteps[: step + 1], torch.float32) for step in range(len(timesteps))]
    assert found.count(True) == 1
    assert not found[-1]


def test_bounds_of_the_steps() -> None:
    assert has_bounds(torch.linspace(1, 0, 9).tolist())
    assert has_bounds([1000.0, 900.0, 300.0, 0.0])
    assert not has_bounds([980.0, 490.0, 0.0])  # the last step of a DDIM sampler
    assert not has_bounds([1.0, 0.5, 0.1])
    assert not has_bounds([1.0, 0.0])
