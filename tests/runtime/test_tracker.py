"""The tracker: which generation, step and lane a call belongs to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pab_compile.plans.schedule import Schedule
from pab_compile.runtime.clock import Reading, read_timestep
from pab_compile.runtime.generation import Generation
from pab_compile.runtime.lane import Call, Lane
from pab_compile.runtime.tracker import Tracker

PROMPTS = {name: torch.full((1, 2, 3), float(i)) for i, name in enumerate(("cond", "uncond"))}


def place(
    tracker: Tracker,
    timestep: torch.Tensor,
    prompt: str = "cond",
    latents: torch.Tensor | None = None,
) -> tuple[Generation, Lane]:
    """The place of a call."""
    latents = torch.zeros(1) if latents is None else latents
    reading = read_timestep(timestep, tracker.tables)
    found = tracker.place(Call(reading, latents, {"prompt": PROMPTS[prompt]}))
    assert found is not None
    return found


def stated(
    tracker: Tracker, index: int, num_steps: int = 4, lane: str | None = None
) -> tuple[Generation, Lane]:
    """The place of a call inside ``step(index, num_steps, lane)``."""
    call = Call(
        Reading(None),
        torch.zeros(1),
        {"prompt": PROMPTS["cond"]},
        None,
        False,
        lane,
        index,
        Schedule(num_steps),
    )
    found = tracker.place(call)
    assert found is not None
    return found


def steps_of(tracker: Tracker, timesteps: Sequence[torch.Tensor]) -> list[int]:
    return [place(tracker, timestep)[0].step for timestep in timesteps]


@pytest.mark.parametrize("by_value", [False, True])
def test_steps_count_from_0_through_one_generation(by_value: bool) -> None:
    table = torch.tensor([900, 600, 300, 0])
    tracker = Tracker()
    given_steps = [t.clone() if by_value else t for t in table]
    assert steps_of(tracker, given_steps) == [0, 1, 2, 3]
    generation = tracker.generation
    assert generation is not None
    assert generation.schedule.num_steps == (None if by_value else 4)
    assert generation.trusted


@pytest.mark.parametrize("by_value", [False, True])
def test_a_timestep_that_goes_back_starts_a_new_generation_and_frees_the_old(
    by_value: bool,
) -> None:
    table = torch.tensor([900, 600, 300, 0])
    given_steps = [t.clone() if by_value else t for t in table]
    tracker = Tracker()
    steps_of(tracker, given_steps)
    first = tracker.generation
    assert steps_of(tracker, given_steps) == [0, 1, 2, 3]
    assert first is not None
    assert first is not tracker.generation
    assert first.closed
    assert len(first.lanes) == 0


@given(st.lists(st.sampled_from([2, 5, 9]), min_size=1, max_size=4), st.booleans())
def test_any_sequence_of_whole_generations_is_counted_right(
    lengths: list[int], by_value: bool
) -> None:
    tracker = Tracker()
    for num_steps in lengths:
        table = torch.linspace(999, 0, num_steps)
        calls = [t.clone() if by_value else t for t in table]
        assert steps_of(tracker, calls) == list(range(num_steps))


def test_an_image_that_is_noised_half_starts_in_the_middle_of_the_table() -> None:
    table = torch.tensor([900, 600, 300, 0])
    tracker = Tracker()
    assert steps_of(tracker, list(table[2:])) == [0, 1]
    assert tracker.generation is not None
    assert tracker.generation.schedule == Schedule(2, (300.0, 0.0))


def test_a_call_at_the_same_timestep_with_other_prompts_is_another_lane() -> None:
    table = torch.tensor([900, 600, 300, 0])
    tracker, lanes = Tracker(), []
    for timestep in table:
        latents = torch.zeros(1)
        for prompt in PROMPTS:
            lanes.append(place(tracker, timestep, prompt, latents)[1])
    assert tracker.generation is not None
    assert tracker.generation.step == 3
    assert lanes[0] is not lanes[1]
    assert lanes[::2] == [lanes[0]] * 4
    assert lanes[1::2] == [lanes[1]] * 4


def test_two_calls_with_equal_prompts_and_latents_are_two_lanes() -> None:
    table = torch.tensor([900, 600, 300, 0])
    tracker, lanes = Tracker(), []
    for timestep in table:
        latents = torch.zeros(1)
        lanes += [place(tracker, timestep, "cond", latents)[1] for _ in range(2)]
    assert lanes[0] is not lanes[1]
    assert lanes == [lanes[0], lanes[1]] * 4


def test_guidance_that_ends_half_way_leaves_the_other_lane_alone() -> None:
    table = torch.tensor([900, 600, 300, 0])
    tracker = Tracker()
    cond = []
    for step, timestep in enumerate(table):
        latents = torch.zeros(1)
        if step < 2:
            place(tracker, timestep, "uncond", latents)
        cond.append(place(tracker, timestep, "cond", latents)[1])
    assert all(lane is cond[0] for lane in cond)


def test_equal_prompts_in_new_memory_are_the_same_lane_and_changed_ones_another() -> None:
    table = torch.tensor([900, 600, 300])
    tracker = Tracker()
    prompts = [torch.ones(2), torch.ones(2), torch.zeros(2)]
    lanes = []
    for timestep, prompt in zip(table, prompts, strict=True):
        found = tracker.place(
            Call(read_timestep(timestep, tracker.tables), torch.zeros(1), {"prompt": prompt})
        )
        assert found is not None
        lanes.append(found[1])
    assert lanes[0] is lanes[1]
    assert lanes[2] is not lanes[0]


def test_a_prompt_that_is_written_to_is_another_lane() -> None:
    table, prompt = torch.tensor([900, 600, 300]), torch.ones(2)
    tracker, lanes = Tracker(), []
    for timestep in table[:2]:
        call = Call(read_timestep(timestep, tracker.tables), torch.zeros(1), {"prompt": prompt})
        found = tracker.place(call)
        assert found is not None
        lanes.append(found[1])
        prompt.zero_()
    assert lanes[0] is not lanes[1]


def test_a_jump_in_the_table_starts_afresh() -> None:
    table = torch.tensor([900, 600, 300, 0])
    tracker = Tracker()
    assert steps_of(tracker, [table[0], table[1], table[3]]) == [0, 1, 0]


def test_two_videos_on_one_table_and_prompt_are_not_trusted() -> None:
    table = torch.tensor([900, 600, 300, 0])
    tracker = Tracker()
    place(tracker, table[0])
    place(tracker, table[1])
    generation, _ = place(tracker, table[0])
    assert not generation.trusted
    (note,) = generation.record.notes
    assert note.startswith("one function makes two generations with the same timesteps")


def test_other_latents_at_the_same_step_are_not_trusted_unless_the_place_tells() -> None:
    tracker = Tracker()
    table = torch.tensor([900, 600, 300, 0])
    first, lane = place(tracker, table[1], latents=torch.zeros(3))
    lane.prelude["graph", 0] = (torch.zeros(1),)
    second, _ = place(tracker, table[1], latents=torch.zeros(4))
    assert second is first
    assert first.trusted
    third, _ = place(tracker, table[1], latents=torch.ones(3))
    assert third is first
    assert not first.trusted
    assert lane.prelude == {}
    (note,) = first.record.notes
    assert note.startswith("calls of one step have the same prompts and other latents")


def test_explicit_steps_and_lanes_are_taken_as_they_are() -> None:
    tracker = Tracker()
    found = [stated(tracker, i, lane=lane) for i in range(4) for lane in ("a", "b")]
    assert [generation.step for generation, _ in found][-1] == 3
    assert len({id(generation) for generation, _ in found}) == 1
    assert len({id(lane) for _, lane in found}) == 2
    assert all(lane is found[0][1] for _, lane in found[::2])


def test_an_explicit_step_that_jumps_starts_afresh() -> None:
    tracker = Tracker()
    first, _ = stated(tracker, 0)
    second, _ = stated(tracker, 2)
    assert second is not first
    assert second.step == 2
    assert first.closed


def test_the_schedule_of_a_scope_is_that_of_its_generations() -> None:
    tracker = Tracker(Schedule(3, (900.0, 500.0, 0.0)))
    generation, _ = place(tracker, torch.tensor(900.0))
    assert generation.schedule.num_steps == 3


def test_prompts_that_differ_at_every_call_are_noticed() -> None:
    table = torch.linspace(999, 0, 20)
    tracker = Tracker()
    for step, timestep in enumerate(table):
        call = Call(
            read_timestep(timestep, tracker.tables),
            torch.zeros(1),
            {"prompt": torch.tensor(float(step))},
        )
        assert tracker.place(call) is not None
    assert tracker.generation is not None
    assert len(tracker.generation.lanes) <= 8
    (note,) = tracker.generation.record.notes
    assert "'prompt' changed at every step and may be a prompt" in note


def test_dropping_frees_everything_and_the_next_call_starts_afresh() -> None:
    table = torch.tensor([900, 600, 300, 0])
    tracker = Tracker()
    generation, lane = place(tracker, table[0])
    lane.prelude[0, 0] = (torch.zeros(1),)
    tracker.drop()
    assert generation.closed
    assert lane.prelude == {}
    assert place(tracker, table[1])[0].step == 0


def test_parts_of_one_tensor_are_lanes_of_their_own() -> None:
    table, tracker = torch.tensor([900, 600, 300]), Tracker()
    lanes: list[list[Lane]] = []
    for timestep in table:
        video = torch.randn(1, 8)
        parts = [video[:, :4], video[:, 2:6], video[:, 4:]]
        lanes.append([place(tracker, timestep, latents=part)[1] for part in parts])
    assert len(set(map(id, lanes[0]))) == 3
    assert lanes[1] == lanes[2] == lanes[0]
    assert tracker.generation is not None
    assert tracker.generation.trusted
