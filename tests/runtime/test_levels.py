"""Timesteps per token and per frame: which level is the clock, and which elements stand still."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pab_compile.runtime.level_notes import note_levels, where
from pab_compile.runtime.levels import Level, Levels
from pab_compile.runtime.stats import GenerationRecord

VIDEO = torch.zeros(1, 4, 13, 8, 8)  # 13 frames
TOKENS = torch.zeros(2, 72, 8)


def values_of(levels: Levels, calls: Sequence[Sequence[float]]) -> list[float | None]:
    return [levels.read(torch.tensor([call])).value for call in calls]


@contextmanager
def counted_reads() -> Iterator[list[int]]:
    """The number of elements of every read by the host."""
    sizes: list[int] = []
    real = torch.Tensor.tolist

    def tolist(tensor: torch.Tensor) -> Any:
        sizes.append(tensor.numel())
        return real(tensor)

    with (
        mock.patch.object(torch.Tensor, "tolist", tolist),
        mock.patch.object(torch.Tensor, "item", side_effect=AssertionError),
        mock.patch.object(torch.Tensor, "__bool__", side_effect=AssertionError),
    ):
        yield sizes


def same_key(first: Level, second: Level) -> bool:
    a, b = first.pattern.key, second.pattern.key
    return a is b if a is None or b is None else torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("repeat", [1, 300])  # 300: compared on the device
def test_elements_at_0_stand_still_and_the_others_are_the_clock(
    dtype: torch.dtype, repeat: int
) -> None:
    levels = Levels()
    mask = torch.tensor([[0, 1, 1], [0, 1, 1]]).repeat(1, repeat)
    read = [levels.read((mask * t).to(dtype)) for t in (896, 512, 256, 0, 896)]
    assert [level.value for level in read] == [896, 512, 256, 0, 896]
    assert all(level.pattern is read[0].pattern for level in read)
    key = read[0].pattern.key
    assert key is not None
    assert key.isinf().tolist() == mask.flatten().bool().tolist()


@given(
    st.lists(st.integers(1, 1000), min_size=2, max_size=9, unique=True),
    st.sampled_from([0.0, 1 / 1024, 0.5, 20.0, 600.0]),
    st.lists(st.booleans(), min_size=2, max_size=6).filter(lambda m: len(set(m)) == 2),
    st.sampled_from([1, 200]),
)
def test_a_constant_level_below_the_first_one_stands_still_whatever_the_schedule(
    schedule: list[int], constant: float, mask: list[bool], repeat: int
) -> None:
    schedule = sorted(schedule, reverse=True)
    if constant >= schedule[0]:
        return
    calls = [[float(t) if moves else constant for moves in mask] * repeat for t in schedule]
    levels = Levels()
    for _ in range(2):  # two generations
        assert values_of(levels, calls) == schedule
        assert all(level.pattern.standing == {constant} for level in levels._seen)


def test_the_moving_level_may_meet_the_standing_one_and_pass_it() -> None:
    calls = [[10.0, 90.0], [10.0, 10.0], [10.0, 5.0], [10.0, 0.0]]
    assert values_of(Levels(), calls) == [90, 10, 5, 0]


def test_several_levels_may_stand_still() -> None:
    levels = Levels()
    assert values_of(levels, [[0, 50, 900], [0, 50, 700], [0, 50, 500]]) == [900, 700, 500]
    assert len(levels._seen) == 1


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param([[900, 300], [800, 200], [700, 100]], id="requests at different steps"),
        pytest.param([[999, 999], [980, 999], [960, 999]], id="frames that have not begun"),
        pytest.param([[500, 900], [400, 900], [300, 900]], id="the largest level stands"),
        pytest.param([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2]], id="rising beside a standing 1"),
    ],
)
def test_where_several_levels_move_there_is_no_clock(calls: list[list[float]]) -> None:
    _, *others = values_of(Levels(), calls)
    assert others == [None, None]


@pytest.mark.parametrize("values", [[float("nan"), 5.0], [5.0, float("nan")], [-5.0, 5.0]], ids=str)
def test_numbers_that_cannot_be_told_apart_are_no_clock(values: list[float]) -> None:
    assert Levels().read(torch.tensor([values])).value is None


def test_frames_that_finish_one_after_the_other_have_no_clock_until_all_start_again() -> None:
    staggered = [[9, 9, 9], [8, 9, 9], [7, 9, 9], [6, 8, 9], [0, 4, 6], [0, 0, 4], [0, 0, 2]]
    levels = Levels()
    for _ in range(2):
        assert values_of(levels, staggered) == [9, *[None] * 6]
    assert values_of(levels, [[0, 9, 9], [0, 8, 8]]) == [9, 8]


def test_two_inputs_with_other_standing_elements_at_every_step_are_told_apart() -> None:
    levels, keys = Levels(), []
    for t in (900, 600, 300):
        pair = [levels.read(torch.tensor(row)) for row in ([[0, t, t]], [[0, 0, t]])]
        assert [level.value for level in pair] == [t, t]
        assert not same_key(*pair)
        keys.append(pair)
    assert all(same_key(pair[i], keys[0][i]) for pair in keys for i in (0, 1))


@pytest.mark.parametrize("repeat", [1, 300])
def test_a_level_or_an_element_that_stands_elsewhere_is_another_pattern(repeat: int) -> None:
    levels = Levels()
    rows = ([0.0, 900.0, 900.0], [0.0, 0.0, 800.0], [0.5, 900.0, 900.0], [700.0, 700.0, 700.0])
    read = [levels.read(torch.tensor([row * repeat])) for row in rows]
    assert not any(same_key(a, b) for i, a in enumerate(read) for b in read[:i])


@pytest.mark.parametrize("num_tokens", [4, 4000])
def test_a_known_pattern_takes_one_read_of_few_numbers(num_tokens: int) -> None:
    levels = Levels()
    mask = (torch.arange(num_tokens) > 1).float()
    calls = [torch.stack([mask, mask]) * t for t in (900.0, 600.0, 300.0)]
    levels.read(calls[0])
    with counted_reads() as sizes:
        assert [levels.read(call).value for call in calls[1:]] == [600, 300]
    assert sizes == [8, 8] if num_tokens == 4 else [2, 2]


def test_what_repeats_in_memory_is_read_once() -> None:
    levels = Levels()
    row = torch.tensor([0.0, 500.0, 500.0])
    with counted_reads() as sizes:
        level = levels.read(row[None].expand(4, -1))
    assert level.value == 500
    assert sizes == [3]


def test_a_timestep_is_not_kept_as_it_is_since_its_memory_may_be_used_again() -> None:
    levels, memory = Levels(), torch.zeros(1, 300)
    memory[:, 5:] = 900.0
    levels.read(memory)
    memory[:, 5:] = 500.0
    assert levels.read(memory).value == 500
    memory.fill_(7.0)
    assert levels.read(memory).pattern.key is None


def test_it_works_where_tensors_have_no_version() -> None:
    with torch.inference_mode():
        level = Levels().read(torch.tensor([[0.0, 500.0]]))
    assert level.value == 500
    assert level.pattern.key is not None
    assert not level.pattern.key.is_inference()


@pytest.mark.parametrize(
    ("timestep", "latents", "expected"),
    [
        (
            [[0.0] * 5 + [312.0] * 4 + [624.0] * 4],
            VIDEO,
            "frames 0-4 at 0, 5-8 at 312, 9-12 at 624",
        ),
        ([[0.5] * 24 + [1.5] * 48] * 2, TOKENS, "tokens 0-23 at 0.5, 24-71 at 1.5"),
        ([900.0, 300.0], TOKENS, "rows 0 at 900, 1 at 300"),
        ([900.0, 300.0], VIDEO, "entries 0 at 900, 1 at 300"),
        ([[900.0], [300.0]], TOKENS, "rows 0 at 900, 1 at 300"),
        (
            [[1.0, 9.0, 9.0], [9.0] * 3],
            TOKENS,
            "row 0: tokens 0 at 1, 1-2 at 9; row 1: tokens 0-2 at 9",
        ),
    ],
)
def test_a_note_says_which_elements_are_at_which_timesteps(
    timestep: list[list[float]], latents: torch.Tensor, expected: str
) -> None:
    levels = Levels()
    levels.read(torch.tensor(timestep) + 1)
    level = levels.read(torch.tensor(timestep))
    record = GenerationRecord()
    note_levels(level, latents, record, goes_on=False)
    note_levels(levels.read(torch.tensor(timestep) - 1), latents, record, goes_on=False)
    (note,) = record.notes
    assert note.startswith(f"{expected}: they are at different timesteps and move")
    assert "at different times, so no step is common" in note


def test_a_long_list_of_levels_is_cut_short() -> None:
    levels = Levels()
    levels.read(torch.arange(40.0)[None] + 1)
    text = where(levels.read(torch.arange(40.0)[None]).pattern, TOKENS)
    assert text.endswith("7 at 7, ...")
    assert len(text) < 120
