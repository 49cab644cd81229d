"""Loops: an outer loop of a function that went on is seen by its own variables."""

from __future__ import annotations

import functools
import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch

from pab_compile.runtime.caller import Callers
from pab_compile.runtime.loops import CallLoop, Doubt, StepLoop, loops_around


def here(depth: int = 1) -> Callers:
    """The function that calls this one."""
    return Callers([sys._getframe(depth)])


def around() -> tuple[CallLoop, ...]:
    """The loops around a call of this function."""
    frame = sys._getframe(1)
    return loops_around(frame.f_code, frame.f_lasti)


def never(_: object) -> bool:
    """No variable is the timestep."""
    return False


def is_tensor_of(number: int, value: object) -> bool:
    return isinstance(value, torch.Tensor) and int(value) == number


def one_loop() -> Iterator[tuple[CallLoop, ...]]:
    for step in range(2):
        if step == 5:
            continue
        yield around()


def while_with_continue() -> Iterator[tuple[CallLoop, ...]]:
    step = 0
    while step < 3:
        step += 1
        if step == 2:
            continue
        yield around()


def after_a_loop() -> Iterator[tuple[CallLoop, ...]]:
    for seed in range(2):
        for _ in range(seed):
            pass
        yield around()


@pytest.mark.parametrize("function", [one_loop, while_with_continue, after_a_loop])
def test_one_loop_has_no_loop_around_it(
    function: Callable[[], Iterator[tuple[CallLoop, ...]]],
) -> None:
    assert not any(loop.own or loop.restarts for loops in function() for loop in loops[:-1])


def test_the_variables_of_each_loop() -> None:
    found = []
    for seed, prompt in [(1, "a")]:
        x = noise = seed
        for step in range(2):
            for branch in prompt:
                x = (x, noise, step, branch)
                found.append(around())
    assert found[0] == (
        CallLoop(("noise", "prompt", "seed"), True, ("seed", "prompt")),
        CallLoop(("step",), True, ("step",)),
        CallLoop(("branch", "x"), False, ("branch",)),
    )


def test_a_loop_without_variables_of_its_own_is_hidden() -> None:
    requests = SimpleNamespace(seed=0)
    for requests.seed in range(1):
        for _ in range(1):
            assert [loop.is_hidden for loop in around()] == [True, False]


def test_what_a_function_inside_assigns_is_not_a_loops_own() -> None:
    def count() -> None:
        nonlocal done
        done += 1

    for seed in range(2):
        done = 0
        for _ in range(2):
            count()
            assert around()[0].own == ("seed",)
        assert (done, seed) in ((2, 0), (2, 1))


def run_videos(turns: list[list[int]]) -> list[tuple[bool, Doubt]]:
    """Loop over videos around the loop over steps, as if all steps were one generation."""
    found, loop = [], None
    for steps in turns:
        seed = object()
        for _ in steps:
            callers = here()
            if loop is None:
                loop = StepLoop(callers, never)
                loop.call(callers)
            else:
                run = callers.runs[0]
                found.append((loop.is_left(callers, run), loop.follow(callers, run, never)))
            assert seed is not None
    return found


def test_the_second_video_is_seen() -> None:
    same, other = (False, Doubt.NONE), (True, Doubt.EARLIER_STEPS)
    assert run_videos([[0, 1, 2], [3, 4]])[:3] == [same, same, other]


def test_a_video_that_is_left_after_its_first_step_makes_this_step_doubtful() -> None:
    found = run_videos([[0], [1, 2, 3], [4]])
    assert [left for left, _ in found] == [False, False, False, True]
    assert found[0][1] is Doubt.EARLIER_STEPS
    assert found[2][1] is Doubt.NONE


def test_a_loop_over_branches_inside_of_a_step_is_no_loop_over_steps() -> None:
    found, loop = [], None
    for step in range(4):
        for branch in "cu":
            callers = here()
            loop = loop or StepLoop(callers, never)
            if branch == "u":
                loop.call(callers)
            elif step > 0:
                run = callers.runs[0]
                found.append((loop.is_left(callers, run), loop.follow(callers, run, never)))
    assert found == [(False, Doubt.NONE)] * 3


def test_a_loop_that_is_hidden_makes_all_steps_doubtful() -> None:
    doubts, loop = [], None
    videos = SimpleNamespace(seed=0)
    for videos.seed in range(1):
        for _ in range(3):
            callers = here()
            if loop is None:
                loop = StepLoop(callers, never)
            else:
                doubts.append(loop.follow(callers, callers.runs[0], never))
    assert doubts[0] is Doubt.ALL_STEPS


def test_no_variable_of_a_loop_is_kept_alive() -> None:
    class Noise:
        """Something that can be referred to weakly."""

    loops, noises = [], []
    for _ in range(2):
        noise = Noise()
        noises.append(weakref.ref(noise))
        for _step in range(1):
            loops.append(StepLoop(here(), never))
    gc.collect()
    assert [gone() is None for gone in noises] == [True, False]


def test_a_loop_over_one_branch_goes_on_if_the_loop_around_it_has_the_timestep() -> None:
    doubts, loop = [], None
    for _, t in enumerate(map(torch.tensor, [900, 700, 500])):  # no tensor outlives its turn
        is_now = functools.partial(is_tensor_of, int(t))
        for _branch in "c":
            callers = here()
            if loop is None:
                loop = StepLoop(callers, is_now)
            else:
                doubts.append(loop.follow(callers, callers.runs[0], is_now))
    assert doubts == [Doubt.NONE] * 2


def test_a_variable_that_has_the_timestep_counts_from_the_second_step_on() -> None:
    doubts, loop = [], None
    timesteps = [900, 700, 500, 300]
    for step in range(4):
        t = timesteps[step]
        for _branch in "c":
            callers, now = here(), timesteps[step].__eq__
            if loop is None:
                loop = StepLoop(callers, now)
            else:
                doubts.append(loop.follow(callers, callers.runs[0], now))
        assert t
    assert doubts == [Doubt.EARLIER_STEPS, Doubt.NONE, Doubt.NONE]


def test_a_loop_without_the_timestep_may_be_over_videos_of_one_step() -> None:
    doubts, loop = [], None
    for _ in range(4):
        for _branch in "c":
            callers = here()
            if loop is None:
                loop = StepLoop(callers, never)
            else:
                doubts.append(loop.follow(callers, callers.runs[0], never))
    assert doubts == [Doubt.EARLIER_STEPS] * 3
