"""What cannot be tuned is refused with the reason, before it costs time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import pab_compile
from helpers.captured import SmallDiT
from helpers.curve import NUM_STEPS, Curve, euler
from pab_compile.errors import CalibrationError


@pytest.fixture(scope="module")
def dit() -> SmallDiT:
    torch.manual_seed(0)
    return SmallDiT(2).requires_grad_(False)


def generate(seed: int, num_steps: int) -> torch.Tensor:
    return euler(Curve(), seed, num_steps)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "Give either computed or speedup"),
        ({"computed": 3, "speedup": 2.0}, "Give either computed or speedup"),
        ({"computed": 1}, "1 steps would compute"),
        ({"speedup": 0.5}, "speedup=0.5 must be from 1"),
        ({"steps": [1, 2]}, "they rise from 0"),
        ({"steps": [0, 12]}, "they rise from 0"),
        ({"computed": 3, "prompts": range(2)}, "at least 3 prompts"),
        ({"computed": 3, "num_steps": 1}, "at least 2 steps"),
        ({"computed": 3, "held_out": 3}, "held_out=3 leaves 0 of 3 prompts"),
        ({"computed": 3}, "did not call the Curve"),
    ],
    ids=str,
)
def test_bad_arguments(changes: dict[str, Any], words: str) -> None:
    given = {"prompts": range(3), "num_steps": NUM_STEPS} | changes
    with pytest.raises(CalibrationError, match=words):
        pab_compile.tune(generate, model=Curve(), **given)


def test_a_compiled_module_is_refused() -> None:
    model = torch.compile(Curve(), backend="pab")
    with pytest.raises(CalibrationError, match="Tune it before that"):
        pab_compile.tune(generate, range(3), model=model, num_steps=NUM_STEPS, computed=3)


def test_a_module_under_enable_is_refused(dit: SmallDiT) -> None:
    handle = pab_compile.enable(dit, inner="eager")
    try:
        with pytest.raises(CalibrationError, match="disable the handle of"):
            pab_compile.tune(generate, range(3), model=dit, num_steps=NUM_STEPS, computed=3)
    finally:
        handle.disable()


class PerToken(Curve):
    """Its timestep has a number per token."""

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return super().forward(latents, timestep[0])


def test_timesteps_per_token_are_refused() -> None:
    model = PerToken()

    def generate(seed: int, num_steps: int) -> torch.Tensor:
        return euler(lambda x, t: model(x, t.expand(1, 7)), seed, num_steps)

    with pytest.raises(CalibrationError, match=r"\[1, 7\], one number per token or frame"):
        pab_compile.tune(generate, range(3), model=model, num_steps=NUM_STEPS, computed=3)


def test_several_passes_through_the_schedule_are_refused() -> None:
    model = Curve()

    def generate(seed: int, num_steps: int) -> torch.Tensor:
        return euler(model, seed, num_steps) + euler(model, seed + 100, num_steps)

    with pytest.raises(CalibrationError, match="12 timesteps several times: it has 24 steps"):
        pab_compile.tune(generate, range(3), model=model, num_steps=NUM_STEPS, computed=3)


def test_a_result_that_is_not_finite_names_its_prompt() -> None:
    model = Curve()

    def broken(seed: int, num_steps: int) -> torch.Tensor:
        return euler(model, seed, num_steps) * (math.nan if seed == 1 else 1)

    with pytest.raises(CalibrationError, match="prompt 1 is not finite"):
        pab_compile.tune(broken, range(3), model=model, num_steps=NUM_STEPS, computed=3)


def test_a_held_out_prompt_that_cannot_be_used_is_found_before_the_fit() -> None:
    model = Curve()

    def broken(seed: int, num_steps: int) -> torch.Tensor:
        return euler(model, seed, num_steps) * (math.nan if seed == 2 else 1)

    with pytest.raises(CalibrationError, match="prompt 2 is not finite"):
        pab_compile.tune(broken, range(3), model=model, num_steps=NUM_STEPS, computed=3)
    assert model.calls == 3 * NUM_STEPS


def test_pictures_that_are_no_tensors_are_refused() -> None:
    model = Curve()

    def drawn(seed: int, num_steps: int) -> list[str]:
        return [str(euler(model, seed, num_steps).shape)]

    with pytest.raises(CalibrationError, match="it returned str"):
        pab_compile.tune(drawn, range(3), model=model, num_steps=NUM_STEPS, computed=3)
