"""The scheduler of a pipeline shows the schedule where no function has it in sight."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pab_compile
from helpers.eager_code import Dit, calls, make

UNEVEN = (1000.0, 900.0, 700.0, 450.0, 200.0, 50.0)
UNITS = {"as it is": 1.0, "of 1000 steps": 1e-3}


@pytest.fixture
def model() -> Dit:
    return make("plain")


def sample(model: torch.nn.Module, draw: Any, unit: float) -> list[torch.Tensor]:
    """A sampler that gets its timesteps one by one, from where nobody sees them."""
    results = []
    with torch.no_grad():
        for x, _, context in calls():
            results.append(model(x, torch.tensor([unit * next(draw)] * 2), context))
    return results


def enabled(model: Dit, timesteps: Any) -> tuple[pab_compile.Handle, Any]:
    pipeline = SimpleNamespace(net=model, scheduler=SimpleNamespace(timesteps=timesteps))
    rule = {"ranges": {"full": 2}, "window": (0.0, 1.0)}
    return pab_compile.enable(pipeline, inner="eager", **rule), pipeline


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_the_schedule_is_known_from_the_first_step(model: Dit, unit: float) -> None:
    handle, _pipeline = enabled(model, torch.tensor(UNEVEN))
    eager = sample(make("plain"), iter(UNEVEN), unit)
    found = sample(model, iter(UNEVEN), unit)
    stats = handle.stats()["net"]
    assert stats.notes == ()
    assert stats.kinds == ("cross", "full")
    assert stats.patterns == ("CC", "C-", "CC", "C-", "CC", "C-")
    same = [torch.equal(*pair) for pair in zip(found, eager, strict=True)]
    assert same == [True, False, True, False, True, False]


@pytest.mark.sample("timesteps1", "None")
@pytest.mark.parametrize("timesteps", [None, (), [5.0, 4.0, 3.0], torch.tensor([7.0, 6.0])])
def test_a_scheduler_that_does_not_have_the_timestep_is_not_followed(
    model: Dit, timesteps: Any
) -> None:
    handle, _pipeline = enabled(model, timesteps)
    eager = sample(make("plain"), iter(UNEVEN), 1.0)
    found = sample(model, iter(UNEVEN), 1.0)
    assert all(map(torch.equal, found, eager))
    assert any(note.startswith("no schedule was found") for note in handle.stats()["net"].notes)


def test_a_schedule_of_another_generation_is_left_when_the_timesteps_differ(model: Dit) -> None:
    handle, pipeline = enabled(model, torch.tensor([1000.0, 990.0, 980.0, 970.0, 960.0, 950.0]))
    eager = sample(make("plain"), iter(UNEVEN), 1.0)
    assert all(map(torch.equal, sample(model, iter(UNEVEN), 1.0), eager))
    pipeline.scheduler = SimpleNamespace(timesteps=UNEVEN)  # another scheduler
    assert not all(map(torch.equal, sample(model, iter(UNEVEN), 1.0), eager))
    assert handle.stats()["net"].notes == ()
