"""Recall: which schedules are known, and which of them a generation may follow."""

from __future__ import annotations

from pab_compile.runtime.recall import KnownSchedules, going_on

LONG = (1.0, 0.9, 0.6, 0.3, 0.1)
SHORT = (1.0, 0.6, 0.2)


def known(*generations: tuple[float, ...]) -> KnownSchedules:
    schedules = KnownSchedules()
    for timesteps in generations:
        schedules.learn(timesteps)
    return schedules


def test_every_schedule_that_starts_at_a_timestep_is_recalled() -> None:
    schedules = known(LONG, SHORT, (0.8, 0.4))
    assert schedules.starting_with(1.0) == [LONG, SHORT]
    assert schedules.starting_with(0.8) == [(0.8, 0.4)]
    assert schedules.starting_with(0.9) == []


def test_a_part_of_a_known_schedule_and_a_single_call_are_not_learned() -> None:
    assert known(LONG, LONG[2:], LONG[:3], (1.0,)).starting_with(1.0) == [LONG]


def test_the_beginning_of_a_schedule_is_forgotten_when_the_whole_is_seen() -> None:
    assert known(LONG[:3], SHORT, LONG).starting_with(1.0) == [SHORT, LONG]


def test_the_oldest_schedules_are_forgotten() -> None:
    schedules = known(*((1.0, 1 / n) for n in range(2, 12)))
    assert schedules.starting_with(1.0) == [(1.0, 1 / n) for n in range(4, 12)]


def test_more_than_one_step_must_be_left() -> None:
    schedules = known(LONG)
    assert [schedules.go_on_after(value) for value in (1.0, 0.6, 0.3, 0.1, 0.7, None)] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_only_schedules_at_this_timestep_at_this_step_go_on() -> None:
    assert going_on([LONG, SHORT], 1, 0.6) == [SHORT]
    assert going_on([LONG, SHORT], 2, 0.6) == [LONG]
    assert going_on([LONG, SHORT], 3, 0.3) == [LONG]
    assert going_on([LONG, SHORT], 0, 0.5) == []
