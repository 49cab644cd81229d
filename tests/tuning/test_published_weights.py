"""Weights of solvers and of published predictors as a plan: what independent code gives."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import pab_compile
from benchmarks.frontier.weights import adams, after_the_first, annealed, evenly, taylor
from helpers.captured import SmallDiT, usual
from pab_compile.plans.plan import COMPUTE, Entry
from pab_compile.plans.plan_file import plan_text
from pab_compile.plans.step_plan import StepPlan, step_plan_to_json

COMPUTED = [0, 1, 2, 5, 7, 11]
NUM_STEPS = 12
Model = Callable[..., torch.Tensor]


def levels() -> list[float]:
    """Uneven: a shifted schedule."""
    even = torch.linspace(1, 0, NUM_STEPS + 1)
    return (3 * even / (1 + 2 * even)).tolist()


@torch.no_grad()
def sampled(model: Model, steps: Sequence[int], velocity_of: Any) -> torch.Tensor:
    """A generation whose moves ``velocity_of(model, x, step)`` makes."""
    x, prompt = usual("latents"), usual("prompt")
    timesteps = 1000 * torch.tensor(levels()[:-1])
    for step, timestep in enumerate(timesteps):
        if step in steps:
            x = velocity_of(lambda x, t=timestep: model(x, t.expand(len(x)), prompt), x, step)
    return x


def planned(dit: SmallDiT, entries: Sequence[Entry], path: Path) -> torch.Tensor:
    """The Euler sampler with a plan file of format 2."""
    plan = StepPlan(tuple(entries), "the plan", "output")
    path.write_text(plan_text(step_plan_to_json(plan)))
    options = {"plan": str(path), "inner": "eager"}
    compiled: Any = torch.compile(dit, backend="pab", options=options)
    ends = levels()

    def euler(model: Model, x: torch.Tensor, step: int) -> torch.Tensor:
        return x + (ends[step + 1] - ends[step]) * model(x)

    found = sampled(compiled, range(NUM_STEPS), euler)
    assert pab_compile.stats(compiled).reused == {"output": NUM_STEPS - len(COMPUTED)}
    return found


@pytest.fixture
def dit() -> SmallDiT:
    torch.manual_seed(0)
    return SmallDiT(1).requires_grad_(False)


def test_a_plan_with_the_weights_of_adams_bashforth_is_this_solver(
    dit: SmallDiT, tmp_path: Path
) -> None:
    ends, seen = levels(), []

    def solver(model: Model, x: torch.Tensor, step: int) -> torch.Tensor:
        after = dict(itertools.pairwise([*COMPUTED, NUM_STEPS]))[step]
        length = ends[after] - ends[step]
        seen.append((ends[step], model(x)))
        (before, last), (now, v) = seen[-2] if len(seen) > 1 else (2.0, seen[0][1]), seen[-1]
        if after == step + 1:  # the sampler's own step, which is Euler's
            return x + length * v
        return x + length * (v + length / 2 * (v - last) / (now - before))

    expected = sampled(dit, COMPUTED, solver)
    found = planned(dit, adams(COMPUTED, ends, 1), tmp_path / "plan.json")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_plan_with_the_weights_of_taylorseer_does_what_its_recursion_does(
    dit: SmallDiT, tmp_path: Path
) -> None:
    ends, factors, at = levels(), [], []

    def solver(model: Model, x: torch.Tensor, step: int) -> torch.Tensor:
        if step in COMPUTED:
            found = [model(x)]
            for order in range(min(2, len(factors))):
                found.append((found[order] - factors[order]) / (step - at[-1]))
            factors[:] = found
            at.append(step)
        ahead = step - at[-1]
        scales = (1, ahead, ahead**2 / 2)
        v = sum((f * s for f, s in zip(factors, scales, strict=False)), torch.tensor(0.0))
        return x + (ends[step + 1] - ends[step]) * v

    expected = sampled(dit, range(NUM_STEPS), solver)
    found = planned(dit, taylor(COMPUTED, NUM_STEPS, 2), tmp_path / "plan.json")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("computed", [4, 7, 10, 15, 29])
def test_the_steps_of_a_cost_are_as_many_as_it_says(computed: int) -> None:
    for steps in (evenly(computed, 30), after_the_first(computed, 30)):
        assert len(steps) == computed
        assert steps[0] == 0
        assert all(a < b < 30 for a, b in itertools.pairwise(steps))


def test_annealing_finds_the_steps_that_the_error_wants() -> None:
    wanted = [0, 1, 2, 9]

    def error(steps: Sequence[int]) -> float:
        return float(sum(abs(a - b) for a, b in zip(steps, wanted, strict=True)))

    assert annealed(error, computed=4, num_steps=12, moves=200) == wanted


def test_a_gap_without_a_step_that_reuses_has_no_weights() -> None:
    assert adams([0, 1], [*levels()[:2], 0.0], 1) == [COMPUTE, COMPUTE]
