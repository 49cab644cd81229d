"""What the tensors of a call mean, by their names and shapes."""

from __future__ import annotations

import pytest
import torch

from pab_compile.compile.call_roles import roles_of_call

VIDEO, ROWS, TOKENS = torch.zeros(2, 4, 3, 8, 8), torch.zeros(2), torch.zeros(2, 7, 12)
CALL = {"hidden_states": VIDEO, "timestep": ROWS, "encoder_hidden_states": TOKENS}


@pytest.mark.parametrize(
    ("inputs", "latents", "clock", "prompts", "stepping"),
    [
        (CALL, "hidden_states", "timestep", ("encoder_hidden_states",), ()),
        ({"x": VIDEO, "t": ROWS, "context": TOKENS}, "x", "t", ("context",), ()),
        (
            {"x[0]": VIDEO[0], "x[1]": VIDEO[1], "t": ROWS, "context[0]": TOKENS[0]},
            "x[0]",
            "t",
            ("context[0]",),
            ("x[1]",),
        ),
        (
            {**CALL, "timestep_r": ROWS},
            "hidden_states",
            "timestep",
            ("encoder_hidden_states",),
            ("timestep_r",),
        ),
        (
            {"x": VIDEO, "t": ROWS, "sigmas": torch.zeros(1), "sample_sigmas": torch.zeros(9)},
            "x",
            "t",
            ("sample_sigmas",),
            ("sigmas",),
        ),
        (
            {**CALL, "control": VIDEO, "guidance": ROWS},
            "hidden_states",
            "timestep",
            ("encoder_hidden_states", "control", "guidance"),
            (),
        ),
    ],
)
def test_latents_timestep_and_prompts_are_told_apart(
    inputs: dict[str, torch.Tensor],
    latents: str,
    clock: str,
    prompts: tuple[str, ...],
    stepping: tuple[str, ...],
) -> None:
    found = roles_of_call(inputs, {})
    assert found is not None
    assert (found.latents, found.clock) == (latents, clock)
    assert (found.prompt_inputs, found.stepping) == (prompts, stepping)


@pytest.mark.parametrize(
    "inputs",
    [
        {"video": VIDEO, "depth": VIDEO, "timestep": ROWS},
        {"hidden_states": VIDEO, "x": VIDEO, "timestep": ROWS},
        {"hidden_states": VIDEO},
        {"hidden_states": VIDEO, "guidance": ROWS},
        {"hidden_states": VIDEO, "timestep_a": ROWS, "timestep_b": ROWS},
        {"hidden_states": VIDEO, "timestep": VIDEO},
        {"encoder_hidden_states": TOKENS, "timestep": ROWS},
        {"hidden_states": VIDEO.long(), "timestep": ROWS},
    ],
)
def test_what_is_not_certain_is_not_guessed(inputs: dict[str, torch.Tensor]) -> None:
    assert roles_of_call(inputs, {}) is None


def test_what_the_user_states_decides() -> None:
    inputs = {"video": VIDEO, "depth": VIDEO, "sigma": ROWS, "timestep": ROWS}
    stated = {"video": "b c t h w", "sigma": "step", "timestep": "prompt"}
    found = roles_of_call(inputs, stated)
    assert found is not None
    assert (found.latents, found.clock, found.prompt_inputs) == (
        "video",
        "sigma",
        ("depth", "timestep"),
    )
