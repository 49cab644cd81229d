"""Continuation: which calls with a computed timestep go on with a generation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from pab_compile.plans.schedule import Schedule
from pab_compile.runtime.caller import Callers
from pab_compile.runtime.clock import Reading
from pab_compile.runtime.generation import Generation
from pab_compile.runtime.lane import Call
from pab_compile.runtime.tracker import Tracker

PROMPT = torch.zeros(1, 2, 3)


def by_value(
    tracker: Tracker,
    value: float,
    outwards: int = 1,
    dtype: torch.dtype = torch.float32,
    latents: torch.Tensor | None = None,
) -> Generation:
    """The generation of a call that the caller of this function makes."""
    frame = sys._getframe(outwards)
    frames = [frame]
    while (frame := frame.f_back) is not None:
        frames.append(frame)
    call = Call(
        Reading(value),
        torch.zeros(1) if latents is None else latents,
        {"prompt": PROMPT},
        clock_dtype=dtype,
        callers=Callers(frames),
    )
    found = tracker.place(call)
    call.callers.release()
    assert found is not None
    return found[0]


LONG = (1.0, 0.9, 0.6, 0.3, 0.1)


def sample(
    tracker: Tracker, timesteps: Sequence[float], stop: int | None = None
) -> list[tuple[int, bool, int | None]]:
    """Run a sampler; (step, trusted, number of steps) of every call."""
    seen = []
    for value in timesteps[:stop]:
        generation = by_value(tracker, value)
        seen.append((generation.step, generation.trusted, generation.schedule.num_steps))
    return seen


def wave(tracker: Tracker, timesteps: Sequence[float]) -> Iterator[Generation]:
    for value in timesteps:
        yield by_value(tracker, value)


def test_the_first_generation_knows_its_schedule_as_the_second_does() -> None:
    tracker = Tracker()
    expected = [(step, True, 5) for step in range(5)]
    assert sample(tracker, LONG) == expected
    assert sample(tracker, LONG) == expected


def test_a_sampler_that_was_stopped_is_over_wherever_the_next_one_starts() -> None:
    for stop in range(1, 5):
        for start in {0, 1, 2, 3} - ({1} if stop == 1 else set()):
            tracker = Tracker()
            sample(tracker, LONG, stop)
            rest = len(LONG) - start
            expected = [(step, True, rest) for step in range(rest)]
            assert sample(tracker, LONG[start:]) == expected, (stop, start)


def test_the_caches_are_freed_when_the_sampler_returns() -> None:
    tracker = Tracker()
    sample(tracker, LONG, 3)
    assert tracker.generation is not None
    assert tracker.generation.closed
    assert len(tracker.generation.lanes) == 0


def test_generators_that_run_in_turns_are_two_generations() -> None:
    tracker = Tracker()
    one, two = wave(tracker, LONG), wave(tracker, LONG)
    first, second = next(one), next(two)
    assert first is not second
    assert [(next(one) is first, next(two) is second) for _ in range(4)] == [(True, True)] * 4
    assert first.trusted
    assert second.trusted
    assert not first.closed
    del one
    assert first.closed


def test_two_videos_in_turns_in_one_function_are_not_trusted() -> None:
    tracker, timesteps = Tracker(), LONG
    for value in timesteps[:3]:
        by_value(tracker, value)
    for value in timesteps[:2]:
        assert not by_value(tracker, value).trusted


def test_a_function_for_every_step_leaves_the_outputs_of_the_first_step() -> None:
    def one(value: float, timesteps: Sequence[float]) -> Generation:
        assert value in timesteps
        return by_value(tracker, value)

    tracker = Tracker()
    found = [one(value, LONG) for value in LONG]
    assert all(generation is found[0] for generation in found)
    assert found[0].trusted
    assert found[0].first_reusable_step == 1


def between(tracker: Tracker, timesteps: Sequence[float], at: float = 0.5) -> list[Generation]:
    """A sampler that takes two calls per step: the second lies between two timesteps."""
    found = []
    for index, value in enumerate(timesteps[:-1]):
        found.append(by_value(tracker, value))
        found.append(by_value(tracker, value + at * (timesteps[index + 1] - value)))
    return [*found, by_value(tracker, timesteps[-1])]


@pytest.mark.parametrize("timesteps", [LONG, LONG[::-1], (900.0, 500.0, 200.0, 20.0)])
def test_calls_between_the_timesteps_of_the_schedule_are_steps(timesteps: Sequence[float]) -> None:
    tracker = Tracker()
    for _ in range(2):
        found = between(tracker, timesteps)
        assert all(generation is found[0] for generation in found)
        assert found[0].step == 2 * len(timesteps) - 2
        assert found[0].trusted
        assert not found[0].schedule.is_known


@pytest.mark.parametrize("third", [0.5, 0.2, 0.99])
def test_such_a_sampler_neither_leaves_a_timestep_out_nor_goes_back(third: float) -> None:
    tracker, timesteps = Tracker(), LONG
    first = by_value(tracker, timesteps[0])
    assert by_value(tracker, 0.95) is first
    assert by_value(tracker, third) is not first


def test_a_call_between_timesteps_that_another_schedule_has_is_of_another_video() -> None:
    tracker, timesteps = Tracker(), LONG
    first = by_value(tracker, timesteps[0])
    others = (0.95, 0.7, 0.4)
    second = by_value(tracker, others[0])
    assert second is not first or not second.around


def test_a_timestep_that_the_schedule_has_twice_is_two_steps() -> None:
    values = [900.0, 900.0, 600.0, 300.0, 0.0]
    tracker = Tracker()
    assert [by_value(tracker, value).step for value in values] == [0, 1, 2, 3, 4]


def test_close_numbers_in_sight_do_not_make_two_calls_of_a_step_two_steps() -> None:
    timesteps, seeds = [1000.0, 900.0, 700.0], range(1000, 1004)
    assert seeds
    tracker, parts = Tracker(), [torch.zeros(1), torch.zeros(1)]
    for part in parts:
        found = by_value(tracker, timesteps[0], dtype=torch.bfloat16, latents=part)
        assert found.step == 0
    assert not found.trusted


def test_two_samplers_in_one_function_share_nothing() -> None:
    """The first is left early, and the second begins at the next timestep."""
    timesteps, tracker = list(LONG), Tracker()
    for value in timesteps[:2]:
        generation = by_value(tracker, value)
    [lane] = generation.lanes
    assert generation.may_reuse_from(lane, 0)
    for value in timesteps[2:]:
        generation = by_value(tracker, value)
        assert (list(generation.lanes), generation.trusted) == ([lane], True)
    assert not generation.may_reuse_from(lane, 1)
    [note] = generation.record.notes
    assert "before step 2 were not reused" in note
    assert generation.may_reuse_from(lane, 2)


def test_a_sampler_may_call_from_several_lines() -> None:
    timesteps, tracker = [1.0, 0.9, 0.6, 0.5, 0.3, 0.1], Tracker()
    for step in range(0, 6, 2):
        by_value(tracker, timesteps[step])
        generation = by_value(tracker, timesteps[step + 1])
    [lane] = generation.lanes
    assert (generation.step, lane.first_reusable_step) == (5, 1)


def test_the_first_step_of_a_stated_generation_may_be_reused() -> None:
    tracker = Tracker(is_one=True)
    for value in LONG[::2]:
        generation = by_value(tracker, value)
        assert (generation.first_reusable_step, generation.trusted) == (0, True)


def test_a_sampler_that_was_stopped_after_one_step_leaves_nothing_to_the_next() -> None:
    """It may have been one step of a loop further out, until the next one loops by itself."""
    tracker = Tracker()
    sample(tracker, LONG, 1)
    assert [step for step, _, _ in sample(tracker, LONG[1:])] == [1, 2, 3, 4]
    assert tracker.generation is not None
    assert tracker.generation.first_reusable_step == 1


@pytest.mark.parametrize("by_value_of", [lambda n: 1 - n / 7, lambda n: n / 7])
def test_evenly_spaced_timesteps_need_no_schedule(by_value_of: Callable[[int], float]) -> None:
    tracker = Tracker()
    for step in range(7):
        generation = by_value(tracker, by_value_of(step))
        assert (generation.step, generation.trusted) == (step, True)
        assert generation.first_reusable_step == 1


def test_timesteps_that_follow_nothing_are_computed_and_said_so() -> None:
    tracker = Tracker()
    for step in range(6):
        generation = by_value(tracker, (1 - step / 6) ** 2)
    assert not generation.trusted
    assert any("generation(timesteps=...)" in note for note in generation.record.notes)


def test_a_sampler_may_take_every_second_timestep() -> None:
    tracker, schedule = Tracker(), [1.0, 0.9, 0.7, 0.4, 0.2, 0.1]
    for step, value in enumerate(schedule[::2]):
        generation = by_value(tracker, value)
        assert (generation.step, generation.trusted) == (step, True)
    assert generation.schedule.timesteps == (1.0, 0.7, 0.2)


def test_a_schedule_that_was_stated_is_not_replaced_by_one_that_was_seen() -> None:
    tracker = Tracker(Schedule(5), is_one=True)
    assert [num for _, _, num in sample(tracker, LONG[:4])] == [5] * 4


def test_a_stated_schedule_that_repeats_no_timestep_makes_two_calls_of_a_step_one_step() -> None:
    """Windows of one video, or calls with other weights, are no steps that follow each other."""
    tracker, parts = Tracker(Schedule(5, LONG), is_one=True), [torch.zeros(1), torch.zeros(1)]
    for part in parts:
        found = by_value(tracker, 1000 * LONG[0], latents=part)
        assert found.step == 0
    assert not found.trusted
    assert by_value(tracker, 1000 * LONG[1]).step == 1


@pytest.mark.parametrize(
    ("timesteps", "given", "dtype"),
    [
        ((1.0, 0.9, 0.9, 0.4), (1.0, 0.9, 0.9, 0.4), torch.float32),
        ((999.0, 998.5, 700.0), (1000.0, 1000.0, 700.0), torch.bfloat16),
        ((3.5, 3.5, 1.0), (0.3, 0.3, 0.1), torch.float32),  # in a unit of its own
    ],
)
def test_a_stated_schedule_may_repeat_a_timestep(
    timesteps: tuple[float, ...], given: tuple[float, ...], dtype: torch.dtype
) -> None:
    tracker = Tracker(Schedule(len(timesteps), timesteps), is_one=True)
    parts = [torch.zeros(1) for _ in given]
    found = [
        by_value(tracker, t, dtype=dtype, latents=x).step for t, x in zip(given, parts, strict=True)
    ]
    assert found == list(range(len(given)))
