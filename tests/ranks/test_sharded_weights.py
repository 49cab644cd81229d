"""Ranks that share weights: what works is exact, and what does not is refused by name."""

from __future__ import annotations

import functools
import re

import pytest
import torch

import helpers.sharded_weights as cases
import pab_compile
from helpers.latte import assert_same
from helpers.world import World
from pab_compile import UnsupportedModelError

pytestmark = pytest.mark.xdist_group("ranks")
alone = functools.cache(lambda: cases.generate(None, "", {"ranges": cases.RANGES}))
REFUSED = {
    "layers with tokens": r"\(fully_shard\) break the forward.*call pab_compile.gather_weights",
    "layers": r"\(fully_shard\) break the forward.*call pab_compile.gather_weights",
    "tensor parallel": r"Ranks share 24 tensor.*parallelize_module.*whole.*on its layers\.$",
}
WEIGHTS_OF_ATTENTION = 8  # queries, keys, values and output, each with a bias


@pytest.mark.sample("whole with tokens")
@pytest.mark.parametrize("how", ["whole with tokens", "whole"])
def test_weights_that_are_gathered_around_the_model_are_exact(world: World, how: str) -> None:
    check_exact(world, how)


@pytest.mark.sample("layers gathered with tokens")
@pytest.mark.parametrize(
    "how", ["layers gathered with tokens", "layers gathered", "layers enabled"]
)
def test_layers_gather_weights_inside_the_graph_and_none_for_what_is_reused(
    world: World, how: str
) -> None:
    all_reused = check_exact(world, how)
    one_reused = world.run(cases.generate, how, {"ranges": {"spatial": 2}}, ranks=2)[0]
    assert alone().reused == 2 * one_reused.reused
    more = one_reused.reused * WEIGHTS_OF_ATTENTION
    assert one_reused.gathers - all_reused.gathers == more
    assert one_reused.said - all_reused.said == more  # and those of pieces that run once


@pytest.mark.sample("layers gathered with tokens-2")
@pytest.mark.parametrize("spatial", [2, 1])
@pytest.mark.parametrize(
    "how", ["layers gathered with tokens", "layers gathered", "whole with tokens"]
)
def test_gathers_of_weights_are_foretold(world: World, how: str, spatial: int) -> None:
    options = {"ranges": {**cases.RANGES, "spatial": spatial}}
    for foretold, counted in world.run(cases.foretold_and_counted, how, options, ranks=2):
        assert foretold == counted


def check_exact(world: World, how: str) -> cases.Found:
    """Compare with one process."""
    found = world.run(cases.generate, how, {"ranges": cases.RANGES}, ranks=2)
    for rank in found:
        assert rank.error == "" and rank.reused == alone().reused > 0
        assert_same(rank.predictions, alone().predictions)
    return found[0]


def test_a_layer_that_gathers_its_weights_computes_what_it_does_with_hooks(world: World) -> None:
    for results in world.run(cases.gathered_like_hooks, ranks=2):
        for expected, found in results:
            assert_same(found, expected)


def test_weights_that_are_not_shared_are_not_gathered() -> None:
    with pytest.raises(UnsupportedModelError, match="Call fully_shard on its layers first"):
        pab_compile.gather_weights(torch.nn.Linear(2, 2))


@pytest.mark.sample("tensor parallel")
@pytest.mark.parametrize("how", REFUSED)
def test_weights_that_are_gathered_within_the_model_are_refused_by_name(
    world: World, how: str
) -> None:
    for found in world.run(cases.generate, how, {"ranges": cases.RANGES}, ranks=2):
        assert re.search(REFUSED[how], found.error), found.error


@pytest.mark.long
def test_the_whole_output_of_a_model_that_gathers_weights_of_layers_is_reused(
    world: World,
) -> None:
    expected = cases.generate(None, "", cases.OUTPUT)
    for found in world.run(cases.generate, "layers", cases.OUTPUT, ranks=2):
        assert found.error == "" and found.reused > 0
        assert_same(found.predictions, expected.predictions)


@pytest.mark.long
def test_tensor_parallelism_of_diffusers_is_refused_by_name(world: World) -> None:
    for found in world.run(cases.parallel_by_diffusers, ranks=2, alone=True):
        assert re.search(REFUSED["tensor parallel"].replace("24", r"\d+"), found), found
