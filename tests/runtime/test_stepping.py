"""Inputs that change at every step are learned, unless a wrong reuse could follow from it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pab_compile.runtime.cache_entry import CacheEntry
from pab_compile.runtime.clock import read_timestep
from pab_compile.runtime.generation import Generation
from pab_compile.runtime.lane import Call, Lane
from pab_compile.runtime.stepping import enter_named
from pab_compile.runtime.tracker import Tracker

MAY_STEP = frozenset({"strength", "residuals[0]", "residuals[1]"})
LEARNED = "changed from step to step. Until this showed, nothing was reused"


class Sampler:
    """Calls a tracker as a sampler calls its model. Text is told by a number."""

    def __init__(self, num_steps: int = 10) -> None:
        self.tracker = Tracker()
        self._table = torch.linspace(999, 0, num_steps)
        self._step, self._latents = -1, torch.zeros(1)

    def step(self) -> int:
        self._step += 1
        self._latents = torch.zeros(1)
        return self._step

    def call(self, text: float = 0.0, lane: str | None = None, **inputs: float) -> Lane:
        prompts = {"text": torch.tensor([text])}
        for name, value in inputs.items():
            if name == "residuals":
                prompts |= {f"residuals[{i}]": torch.tensor([value + i]) for i in range(2)}
            else:
                prompts[name] = torch.tensor([value])
        reading = read_timestep(self._table[self._step], self.tracker.tables)
        names = tuple(prompts)
        call = Call(reading, self._latents, prompts, names, lane=lane, may_step=MAY_STEP)
        found = self.tracker.place(call)
        assert found is not None
        found[1].cache.setdefault(("graph", self._step), CacheEntry())
        return found[1]

    @property
    def generation(self) -> Generation:
        assert self.tracker.generation is not None
        return self.tracker.generation

    @property
    def notes(self) -> list[str]:
        return self.generation.record.notes


@pytest.fixture
def sampler() -> Sampler:
    return Sampler()


def test_an_input_that_changes_at_every_step_continues_the_lane_after_two_changes(
    sampler: Sampler,
) -> None:
    lanes = [sampler.call(strength=1 - 0.1 * sampler.step()) for _ in range(10)]
    assert lanes[0] is not lanes[1]
    assert all(lane is lanes[1] for lane in lanes[2:])
    assert not lanes[0].cache, "a lane that belongs to no prompt holds nothing"
    assert sampler.generation.lanes.num_opened == len(sampler.generation.lanes) == 1
    assert sampler.generation.lanes.stepping == {"strength"}
    assert "strength" not in lanes[1].prompts, "values of steps that are over are not held"
    (note,) = sampler.notes
    assert LEARNED in note and '{"strength": "step"}' in note


def test_all_entries_of_a_list_are_learned_at_once_and_named_by_the_list(sampler: Sampler) -> None:
    for _ in range(10):
        sampler.call(residuals=float(10 * sampler.step()), strength=1.0)
    assert sampler.generation.lanes.stepping == {"residuals[0]", "residuals[1]"}
    (note,) = sampler.notes
    assert (
        note.startswith("'residuals' changed from step to step") and '{"residuals": "step"}' in note
    )


def test_guidance_by_text_keeps_its_two_lanes(sampler: Sampler) -> None:
    lanes = []
    for _ in range(10):
        strength = float(sampler.step())
        lanes.append([sampler.call(text, strength=strength + text) for text in (0.0, 1.0)])
    assert all(pair == lanes[1] for pair in lanes[2:])
    assert lanes[1][0] is not lanes[1][1]
    assert sampler.generation.lanes.num_opened == 2
    assert sampler.generation.trusted


def test_an_input_that_alone_tells_two_calls_apart_is_never_learned(sampler: Sampler) -> None:
    lanes = []
    for _ in range(4):
        strength = float(sampler.step())
        lanes += [sampler.call(strength=strength), sampler.call(strength=-1 - strength)]
    assert len(set(lanes)) == len(lanes)
    assert not sampler.generation.lanes.stepping
    (note,) = sampler.notes
    assert "only 'strength' distinguished two calls" in note


def test_guidance_by_a_learned_input_that_begins_late_ends_all_reuse(sampler: Sampler) -> None:
    for _ in range(5):
        sampler.call(strength=float(sampler.step()))
    assert sampler.generation.trusted
    first = sampler.call(strength=float(sampler.step()))
    assert sampler.call(strength=-5.0) is not first
    assert not sampler.generation.trusted
    assert "only 'strength' distinguished two calls" in sampler.notes[-1]


def test_text_that_changes_at_every_step_is_never_learned(sampler: Sampler) -> None:
    lanes = []
    for _ in range(10):
        step = float(sampler.step())
        lanes.append(sampler.call(step, strength=step))
    assert len(set(lanes)) == 10
    assert not sampler.generation.lanes.stepping
    (note,) = sampler.notes
    assert "'text' changed at every step and may be a prompt" in note


def test_text_that_changes_after_an_input_was_learned_opens_a_lane(sampler: Sampler) -> None:
    lanes = [sampler.call(step // 5, strength=float(step)) for step in _steps(sampler, 10)]
    assert len(set(lanes[1:5])) == 1
    assert len(set(lanes[5:])) == 1
    assert lanes[4] is not lanes[5]


def test_one_change_is_not_enough(sampler: Sampler) -> None:
    values = (0.0, 0.0, 1.0, 1.0, 0.0, 1.0)
    lanes = [
        sampler.call(strength=value) for value, _ in zip(values, _steps(sampler, 6), strict=True)
    ]
    assert [lane is lanes[0] for lane in lanes] == [value == 0 for value in values]
    assert not sampler.generation.lanes.stepping


def test_an_input_that_begins_to_change_half_way_is_learned(sampler: Sampler) -> None:
    lanes = [sampler.call(strength=float(max(step, 3))) for step in _steps(sampler, 10)]
    assert len(set(lanes[:4])) == 1
    assert len(set(lanes[4:])) == 1
    assert sampler.generation.lanes.stepping == {"strength"}


def test_an_input_that_comes_and_goes_is_not_learned(sampler: Sampler) -> None:
    for step in _steps(sampler, 6):
        sampler.call(**({"strength": float(step)} if step % 2 else {}))
    assert not sampler.generation.lanes.stepping


def test_a_tensor_that_the_caller_writes_to_is_seen_to_change() -> None:
    for inference in (False, True):
        with torch.inference_mode(inference):
            tracker, strength = Tracker(), torch.ones(1)
            for timestep in torch.linspace(999, 0, 8):
                reading = read_timestep(timestep, tracker.tables)
                prompts = {"strength": strength}
                latents = torch.zeros(1)
                call = Call(reading, latents, prompts, ("strength",), may_step=MAY_STEP)
                assert tracker.place(call) is not None
                strength.mul_(0.5)
            assert tracker.generation is not None
            assert tracker.generation.lanes.stepping == {"strength"}


def test_the_next_generation_learns_anew(sampler: Sampler) -> None:
    for _ in _steps(sampler, 10):
        sampler.call(strength=torch.rand(()).item())
    sampler._step = -1
    sampler.step()
    sampler.call(strength=1.0)
    assert not sampler.generation.lanes.stepping


def test_a_named_lane_goes_on_when_an_input_steps_and_is_freed_when_its_text_changes(
    sampler: Sampler,
) -> None:
    def call(text: float, strength: float) -> Call:
        prompts = {"text": torch.tensor([text]), "strength": torch.tensor([strength])}
        reading = read_timestep(torch.tensor(1.0))
        names = tuple(prompts)
        return Call(reading, torch.zeros(1), prompts, names, lane="a", may_step=MAY_STEP)

    sampler.step()
    lane = sampler.call(lane="a", strength=0.0)
    lanes = sampler.generation.lanes
    assert enter_named(lanes, lane, call(0.0, 0.0)) == ""
    assert not lanes.stepping
    assert LEARNED in enter_named(lanes, lane, call(0.0, 1.0))
    assert lanes.stepping == {"strength"} and lane.cache
    assert "'text' changed within the lane 'a'" in enter_named(lanes, lane, call(1.0, 2.0))
    assert not lane.cache
    assert enter_named(lanes, lane, call(1.0, 3.0)) == ""


def test_more_than_eight_calls_a_step_are_said_to_be_too_many(sampler: Sampler) -> None:
    for _ in _steps(sampler, 3):
        for text in range(10):
            sampler.call(float(text))
    (note,) = sampler.notes
    assert "more than 8 lanes without a name" in note and "the calls differ in 'text'" in note


def _steps(sampler: Sampler, number: int) -> Iterator[int]:
    for _ in range(number):
        yield sampler.step()
