"""Ranks that share weights: what works is exact, and what does not is refused by name."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest

import helpers.sharded_weights as cases
from helpers.latte import assert_same
from helpers.world import World

pytestmark = pytest.mark.xdist_group("ranks")
alone = functools.cache(lambda: cases.generate(None, "", {"ranges": cases.RANGES}))
REFUSED = {
    "layers with tokens": r"\(fully_shard\) break the forward.*Shard the model as a whole instead",
    "layers": r"\(fully_shard\) break the forward.*Shard the model as a whole instead",
    "tensor parallel": r"Ranks share 24 tensor.*parallelize_module.*whole weights.*as a whole\.$",
}


@pytest.mark.sample("whole with tokens")
@pytest.mark.parametrize("how", ["whole with tokens", "whole"])
def test_weights_that_are_gathered_around_the_model_are_exact(world: World, how: str) -> None:
    _, expected, reused = alone()
    assert expected is not None and reused > 0
    for error, found, num in world.run(cases.generate, how, {"ranges": cases.RANGES}, ranks=2):
        assert error == "" and num == reused
        assert_same(found, expected)


@pytest.mark.sample("tensor parallel")
@pytest.mark.parametrize("how", REFUSED)
def test_weights_that_are_gathered_within_the_model_are_refused_by_name(
    world: World, how: str
) -> None:
    results: list[Any] = world.run(cases.generate, how, {"ranges": cases.RANGES}, ranks=2)
    for error, _, _ in results:
        assert re.search(REFUSED[how], error), error


@pytest.mark.long
def test_the_whole_output_of_a_model_that_gathers_weights_of_layers_is_reused(
    world: World,
) -> None:
    _, expected, _ = cases.generate(None, "", cases.OUTPUT)
    assert expected is not None
    for error, found, num in world.run(cases.generate, "layers", cases.OUTPUT, ranks=2):
        assert error == "" and found is not None and num > 0
        assert_same(found, expected)
