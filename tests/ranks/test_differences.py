"""One rank differs from the others: every rank raises an error that names the difference."""

from __future__ import annotations

import pytest

import helpers.difference_cases as cases
from helpers.latte import assert_same
from helpers.world import World

pytestmark = pytest.mark.xdist_group("ranks")
SECONDS = 20.0
AT_ANOTHER_CALL = ("; rank 0 runs the model since ", "its last call: step 1 of 4 (timestep 500)")
"""Rank 0 is in a step that rank 1 does not make."""
NAMED: dict[str, tuple[str, ...]] = {
    "latents": ("input 'hidden_states' (rank 0: ",),
    "one element": ("input 'hidden_states' (rank 0: ",),
    "prompt": ("input 'encoder_hidden_states' (rank 0: ",),
    "noise": ("input 'hidden_states' (rank 0: ",),
    "steps": ("rank 0: begins a generation at step 0 of 4", "rank 1: begins", "step 0 of 5"),
    "timesteps": ("step 0 of 4 (timestep 750); rank 1: ", "step 0 of 4 (timestep 746)"),
    "later timesteps": ("timesteps (rank 0: 750 500 250 0; rank 1: 750 495 245 0)",),
    "a LoRA is fused": ("weight 'transformer_blocks.0.attn1.to_q.weight' (rank 0: ",),
    "a LoRA is fused later": ("rank 1: step 2 of 4", *AT_ANOTHER_CALL, "inputs, weights and"),
    "half a checkpoint": ("weight 'pos_embed.proj.bias' (rank 0: ", " more. Load the same weights"),
    "a LoRA is loaded": ("do not run the same program", "model or sizes of the inputs differ"),
    "plan": ("decisions (rank 0: 5 sites, ", "The plan decides otherwise on these ranks"),
    "length": ("rank 1: compiles the model for ", "encoder_hidden_states [1, 2, 12]"),
    "size": ("rank 1: compiles the model for hidden_states [1, 4, 4, 12, 12]",),
    "another request": ("rank 1: begins a generation at step 0 of 4", *AT_ANOTHER_CALL),
    "begins again": ("rank 1: begins a generation at step 0 of 4", *AT_ANOTHER_CALL),
    "calls once more": ("rank 1: begins a generation at step 0 of 4", *AT_ANOTHER_CALL),
    "resets": ("rank 1: begins a generation at step 0 of 2", *AT_ANOTHER_CALL),
    "states steps": ("rank 1: step 2 of 4", *AT_ANOTHER_CALL),
    "states a generation": ("rank 1: begins a generation at step 0 of 4", *AT_ANOTHER_CALL),
}
"""What rank 1 does -> parts of the message on both ranks."""
COMPILING = ("length", "size", "a LoRA is loaded")
"""Rank 1 compiles first, for as long as the machine takes."""


def test_a_difference_is_named_on_every_rank_and_the_next_generation_works(world: World) -> None:
    names = ["equal", *NAMED, "equal again"]
    first, second = world.run(cases.differing_ranks, names, ranks=2, alone=True)
    for name, parts in NAMED.items():
        for error, seconds, _ in (first[name], second[name]):
            assert error.startswith("RanksError: "), (name, error)
            assert all(part in error for part in parts), (name, error)
            assert seconds < SECONDS or name in COMPILING, name
    expected = first["equal"][2]
    for found in (second["equal"], first["equal again"], second["equal again"]):
        assert found[0] == ""
        assert_same(found[2], expected)


def test_plan_functions_that_differ_in_a_default_or_a_literal_are_named_on_every_rank(
    world: World,
) -> None:
    for found in world.run(cases.differing_functions, ranks=2):
        assert list(found) == ["default", "literal"]
        for error, _, _ in found.values():
            assert error.startswith("RanksError: ") and "The plan decides otherwise" in error


def test_the_inputs_of_the_first_rank_are_sent_to_all(world: World) -> None:
    expected = cases.sent_from_first(None, 5)
    for found in world.run(cases.sent_from_first, 5, ranks=2):
        assert_same(found, expected)
