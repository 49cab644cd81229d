"""A timestep that is a Python number: one program for all steps, or an error that helps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import pab_compile
from helpers.eager_code import RANGES, Dit, as_oracle, calls, compiled
from helpers.latte import assert_same
from pab_compile.errors import UnsupportedModelError


class Numbered(Dit):
    """The timestep is a number, of which a function makes the embedding's angle ``[1, 1]``."""

    def __init__(self, angle: Callable[[Any], torch.Tensor]) -> None:
        super().__init__()
        self.angle = angle

    def embed(self, timestep: Any) -> torch.Tensor:
        return self.time((self.angle(timestep) * torch.arange(8)).sin())[:, None]


ANGLES: dict[str, Callable[[Any], torch.Tensor]] = {
    "tensor": lambda t: torch.tensor([t], dtype=torch.float32)[:, None] / 100,
    "tensor without dimensions": lambda t: torch.tensor(t).float().reshape(1, 1) / 100,
    "full": lambda t: torch.full((3,), t, dtype=torch.float32)[:1, None] / 100,
    "arithmetic": lambda t: torch.ones(1, 1) * (2 * t / 200.0),
    "beside integers": lambda t: torch.ones(1, 1, dtype=torch.int64) * t / 100,
    "beside no dimensions": lambda t: (torch.tensor(0.01) * t).reshape(1, 1),
}


def make(angle: Callable[[Any], torch.Tensor]) -> Numbered:
    torch.manual_seed(0)
    return Numbered(angle).eval().requires_grad_(False)


def numbered(number: type) -> list[tuple[Any, ...]]:
    return [(x, number(timestep[0].item()), context) for x, timestep, context in calls()]


@pytest.mark.sample(
    "tensor-float",
    "full-int",
    "arithmetic-float",
    "beside integers-int",
    "tensor without dimensions-float",
)
@pytest.mark.parametrize("number", [float, int])
@pytest.mark.parametrize("name", ANGLES)
def test_a_number_is_read_without_a_compilation_per_step(name: str, number: type) -> None:
    model = make(ANGLES[name])
    reusing = compiled(model, RANGES)
    torch._dynamo.utils.counters.clear()
    inputs = numbered(number)
    timesteps = [timestep for _, timestep, _ in inputs]
    for generation in range(3):
        for step, timestep in enumerate(timesteps):
            x, _, context = inputs[step]
            actual = reusing(x, timestep, context)
            # Dynamo takes the first value for a constant; the second generation shows the steps.
            if generation == 2:
                with as_oracle(model, step):
                    assert_same(actual, model(x, timestep, context))
    assert pab_compile.stats(reusing).reused == {"full": 3, "cross": 4}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_the_first_generation_is_right_too() -> None:
    model = make(ANGLES["tensor"])
    always = compiled(model, {})
    for each in numbered(float):
        assert_same(always(*each), model(*each))
    assert pab_compile.stats(always).steps == len(numbered(float)) - 1  # not the constant


def test_a_stated_step_and_a_stated_schedule_take_numbers() -> None:
    model = make(ANGLES["arithmetic"])
    reusing = compiled(model, RANGES)
    inputs = numbered(float)
    for each in inputs[:2]:
        reusing(*each)  # Dynamo learns that the number changes
    pab_compile.reset()
    times = [timestep for _, timestep, _ in inputs]
    with pab_compile.generation(timesteps=times):
        found = [reusing(*each) for each in inputs]
    stated = []
    with pab_compile.generation():
        for step, each in enumerate(inputs):
            with pab_compile.step(step, len(inputs)):
                stated.append(reusing(*each))
    assert pab_compile.stats(reusing).reused == {"full": 3, "cross": 4}
    for step, each in enumerate(inputs):
        with as_oracle(model, step):
            expected = model(*each)
        assert_same(found[step], expected)
        assert_same(stated[step], expected)


@pytest.mark.sample("True")
@pytest.mark.parametrize("stated", [False, True])
def test_a_number_that_dynamo_compiles_anew_is_refused_with_what_to_do(stated: bool) -> None:
    model = make(lambda t: torch.as_tensor(t, dtype=torch.float32).reshape(1, 1) / 100)
    reusing = compiled(model, RANGES)
    inputs = numbered(float)

    def run() -> None:
        for step, each in enumerate(inputs):
            if stated:
                with pab_compile.step(step, len(inputs)):
                    reusing(*each)
            else:
                reusing(*each)

    with pytest.raises(UnsupportedModelError, match=r"timestep=torch.tensor\(\[timestep\]\)"):
        run()
    with pytest.raises(UnsupportedModelError, match="is a Python number"):
        pab_compile.explain(model, *inputs[0])
    # The remedy works.
    fixed = compiled(model, RANGES)
    for step, (x, timestep, context) in enumerate(inputs):
        with pab_compile.step(step, len(inputs)):
            fixed(x, torch.tensor([timestep]), context)
    assert pab_compile.stats(fixed).reused == {"full": 3, "cross": 4}


def test_a_use_that_is_not_known_is_refused() -> None:
    model = make(lambda t: torch.ones(1, 1) * (t**0.5))
    reusing = compiled(model, RANGES)
    with pytest.raises(UnsupportedModelError, match="is a Python number"):
        for each in numbered(float):
            reusing(*each)
