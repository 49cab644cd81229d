"""Timesteps per token and per frame, in a whole DiT: against module hooks."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch

import pab_compile
from helpers.latte import assert_different, assert_same

from .build import Denoising, build, run
from .catalogue import CATALOGUE
from .oracle import RANGES, Oracle

DIT = CATALOGUE["ltx"]
NUM_STEPS = 8
NUM_TOKENS, PER_FRAME = 72, 24
OPTIONS = {"inner": "eager", "ranges": RANGES, "window": (0.0, 1.0)}


class PerToken(Denoising):
    """A loop with a timestep per token.

    Args:
        levels: per step a timestep for each of the three frames.
    """

    def __init__(self, levels: Iterable[Iterable[float]]) -> None:
        super().__init__(DIT, NUM_STEPS, batch=2)
        self.levels = torch.tensor([list(each) for each in levels])

    def at(self, step: int) -> dict[str, Any]:
        """Arguments of the call at a step."""
        timestep = self.levels[step].repeat_interleave(PER_FRAME).expand(2, -1).contiguous()
        return {**super().at(step), DIT.clock: timestep}


SCHEDULE = [float(t) for t in torch.linspace(950, 50, NUM_STEPS)]


def standing(level: float, frames: int = 1) -> PerToken:
    """The given frames stand at a level."""
    return PerToken([level] * frames + [t] * (3 - frames) for t in SCHEDULE)


def stated(how: str, step: int) -> AbstractContextManager[None]:
    return pab_compile.step(step, NUM_STEPS) if how == "step()" else nullcontext()


def generate(model: Any, loop: Denoising, how: str) -> list[torch.Tensor]:
    """The outputs of a generation whose steps are known."""
    outputs = []
    with pab_compile.generation(timesteps=SCHEDULE if how == "timesteps" else None):
        for step in range(NUM_STEPS):
            with stated(how, step):
                outputs.append(run(model, **loop.at(step))[0])
    return outputs


def compile_with(model: torch.nn.Module, **options: Any) -> Any:
    return torch.compile(model, backend="pab", dynamic=False, options={**OPTIONS, **options})


@pytest.fixture(scope="module")
def eager() -> torch.nn.Module:
    """The model as it is."""
    return build(DIT)


def by_hooks(loop: Denoising) -> list[torch.Tensor]:
    return [outputs[0] for outputs in Oracle(build(DIT), DIT).run(loop)]


def by_eager(model: torch.nn.Module, loop: Denoising) -> list[torch.Tensor]:
    return [outputs[0] for outputs in loop.run(model)]


def test_where_tokens_stand_still_the_others_tell_the_step(eager: torch.nn.Module) -> None:
    compiled = compile_with(eager)
    for level in (0.0, 20.0):
        loop = standing(level)
        expected = torch.stack(by_hooks(loop))
        assert_different(expected, torch.stack(by_eager(eager, loop)))
        for how in ("timesteps", "step()"):
            assert_same(torch.stack(generate(compiled, loop, how)), expected)
            stats = pab_compile.stats(compiled)
            assert (stats.steps, stats.lanes, stats.notes) == (NUM_STEPS, 1, ())


def test_other_tokens_that_stand_still_from_some_step_on_reuse_nothing_from_before(
    eager: torch.nn.Module,
) -> None:
    compiled = compile_with(eager)
    loop = standing(0.0)
    loop.levels[5:, 1] = 0.0
    actual = generate(compiled, loop, "timesteps")
    expected = by_eager(eager, loop)
    assert_different(actual[3], expected[3])  # reused
    assert_same(actual[5], expected[5])
    assert_different(actual[7], expected[7])
    (note,) = pab_compile.stats(compiled).notes
    assert "tokens 0-47 at 0, 48-71 moving; before: tokens 0-23 at 0, 24-71 moving" in note


STAGGERED = [[t, 950.0, 950.0] for t in (800.0, 600.0)] + [
    [400.0 - 100 * i, 800.0 - 100 * i, 950.0 - 50 * i] for i in range(NUM_STEPS - 2)
]


def test_frames_at_different_steps_compute_unless_the_step_is_stated(
    eager: torch.nn.Module,
) -> None:
    compiled, loop = compile_with(eager), PerToken(STAGGERED)
    actual = generate(compiled, loop, "nothing")
    assert all(map(torch.equal, actual, by_eager(eager, loop)))
    stats = pab_compile.stats(compiled)
    # The first call looks like one where a given frame stands still.
    assert (stats.steps, stats.calls, sum(stats.reused.values())) == (NUM_STEPS - 1,) * 2 + (0,)
    (note,) = stats.notes
    assert "tokens 0-23 at 600, 24-71 at 950" in note
    assert "pab_compile.step(" in note

    assert_same(torch.stack(generate(compiled, loop, "step()")), torch.stack(by_hooks(loop)))
    assert pab_compile.stats(compiled).notes == ()

    with pab_compile.generation(timesteps=SCHEDULE):  # the next generation reuses again
        outputs = []
        for loop in (PerToken(STAGGERED), standing(0.0)):
            outputs = [run(compiled, **loop.at(step))[0] for step in range(NUM_STEPS)]
    assert_same(torch.stack(outputs), torch.stack(by_hooks(standing(0.0))))


@pytest.mark.long
def test_a_window_in_timesteps_is_that_of_the_level_that_moves(eager: torch.nn.Module) -> None:
    model = compile_with(eager, window=(200, 700))
    patterns = []
    for loop in (standing(0.0), standing(0.0, frames=0)):
        generate(model, loop, "timesteps")
        patterns.append(pab_compile.stats(model).patterns)
    assert patterns[0] == patterns[1] == ("CC", "CC", "-C", "C-", "-C", "--", "CC", "CC")
