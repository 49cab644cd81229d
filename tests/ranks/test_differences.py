"""One rank differs from the others: every rank raises an error that names the difference."""

from __future__ import annotations

import pytest

import helpers.difference_cases as cases
from helpers.latte import assert_same
from helpers.world import World

pytestmark = pytest.mark.xdist_group("ranks")
NAMED = {
    "latents": "input 'hidden_states' (rank 0: ",
    "prompt": "input 'encoder_hidden_states' (rank 0: ",
    "noise": "input 'hidden_states' (rank 0: ",
    "timesteps": "differ",
    "weights": "weight ",
    "begins again": "are at different calls",
    "plan": "The plan decides otherwise on these ranks",
    "length": "compiles the model for ",
}


def test_a_difference_is_named_on_every_rank_and_the_next_generation_works(world: World) -> None:
    names = ["equal", *NAMED, "equal again"]
    first, second = world.run(cases.differing_ranks, names, ranks=2, alone=True)
    for name, words in NAMED.items():
        for error, seconds, _ in (first[name], second[name]):
            assert error.startswith("RanksError: ") and words in error, (name, error)
            assert seconds < 20, name
    expected = first["equal"][2]
    for found in (second["equal"], first["equal again"], second["equal again"]):
        assert found[0] == ""
        assert_same(found[2], expected)


def test_the_inputs_of_the_first_rank_are_sent_to_all(world: World) -> None:
    expected = cases.sent_from_first(None, 5)
    assert_same(world.run(cases.sent_from_first, 5, ranks=2)[0], expected)
