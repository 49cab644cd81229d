"""Ranks share the heads of attention ops of other libraries: real collectives, over gloo."""

from __future__ import annotations

import pytest

import helpers.foreign_attention as cases
from helpers.latte import assert_same
from helpers.world import World

pytestmark = [
    pytest.mark.xdist_group("ranks"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]


@pytest.mark.sample("flash")
@pytest.mark.parametrize("how", ["flash", "flex, masked", "sloped by head"])
def test_two_ranks_generate_what_one_process_does(world: World, how: str) -> None:
    expected, reused = cases.generate(None, how)
    assert reused == 2
    for found, also_reused in world.run(cases.generate, how, ranks=2):
        assert_same(found, expected)
        assert also_reused == reused
