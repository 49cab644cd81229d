"""Several processes share the rows of a batch, and their tokens as well: over gloo."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch

import helpers.rank_cases as rank_cases
import pab_compile
from helpers.latte import assert_same, ddim_timesteps, draw_latents, draw_prompt, tiny_latte
from helpers.rank_cases import DEPTH, NUM_STEPS, PLANS
from helpers.world import World
from pab_compile import Schedule
from pab_compile.report.exchanges import OUTSIDE_OF_SITES, Exchanges
from ranks.test_parallel import computed_kinds

pytestmark = pytest.mark.xdist_group("ranks")
alone = functools.cache(functools.partial(rank_cases.generate_rows, None))


def predicted(plan: str, rows: int, num_ranks: int, **options: Any) -> float:
    """Bytes that rank 0 sends in a generation."""
    timesteps = tuple(map(float, ddim_timesteps(NUM_STEPS)))
    return pab_compile.comm(
        tiny_latte(DEPTH),
        hidden_states=draw_latents(batch=rows),
        timestep=torch.tensor([500] * rows),
        encoder_hidden_states=draw_prompt(batch=rows),
        num_ranks=num_ranks,
        schedule=Schedule(NUM_STEPS, timesteps),
        options={**PLANS[plan], "batch_parallel": 2, **options},
    ).wire_bytes


@pytest.mark.sample("predicted and coalesced")
@pytest.mark.parametrize("plan", ["computes always", "predicted and coalesced"])
def test_ranks_with_a_row_each_generate_what_one_process_does_and_gather_only(
    world: World, plan: str
) -> None:
    expected = alone(plan, "rows")
    ranks = world.run(rank_cases.generate_rows, plan, "rows", ranks=2)
    for found in ranks:
        assert_same(found["predictions"], expected["predictions"])
        assert found["computed"] == expected["computed"]
        assert found["per step"] == [0] * NUM_STEPS
        assert found["cache"] * 2 == expected["cache"]
        assert any(note.startswith("batch: 1 of 2 rows per rank") for note in found["notes"])
    assert ranks[0]["sent"] == predicted(plan, 2, 2) > 0
    for number, found in enumerate(ranks):
        (gathers,) = Exchanges(found["stats"].timeline).rows
        assert gathers.key == (OUTSIDE_OF_SITES, "all-gather", "batch")
        assert gathers.sent_bytes == gathers.by_rank[number] == found["sent"]


@pytest.mark.sample(
    "batched-auto-2 ranks for the batch or the calls of a step",
    "none-auto, several graphs-2 ranks for the tokens along t",
)
@pytest.mark.parametrize(
    ("guidance", "how", "chosen"),
    [
        ("batched", "auto", "2 ranks for the batch or the calls of a step"),
        ("none", "auto", "2 ranks for the tokens along t"),
        ("two calls", "auto, two calls", "2 ranks for the batch or the calls of a step"),
        ("none", "auto, several graphs", "2 ranks for the tokens along t"),
    ],
)
def test_ranks_choose_how_they_share_and_say_why(
    world: World, guidance: str, how: str, chosen: str
) -> None:
    expected = alone("linear3", how, 1, guidance)
    found = world.run(rank_cases.generate_rows, "linear3", how, 1, guidance, ranks=2)
    for each in found:
        assert_same(each["predictions"], expected["predictions"])
        assert f"shard='auto' takes {chosen}" in each["notes"]
        assert any("in collectives" in note for note in each["notes"])
    assert found[0]["notes"] == found[1]["notes"]
    assert found[0]["cache"] < expected["cache"]


@pytest.mark.long
def test_rows_that_do_not_divide_are_shared_unevenly(world: World) -> None:
    case = ("before the gate", "rows", 3, "none")
    expected = alone(*case)
    for found in world.run(rank_cases.generate_rows, *case, ranks=2):
        assert_same(found["predictions"], expected["predictions"])
        assert found["per step"] == [1] * NUM_STEPS  # an uneven gather is an all-to-all


@pytest.mark.long
@pytest.mark.parametrize(
    ("plan", "how"), [("behind the gate", "counted"), ("predicted and coalesced", "mesh")]
)
def test_four_ranks_share_both_the_batch_and_the_tokens(world: World, plan: str, how: str) -> None:
    expected = alone(plan, how)
    ranks = world.run(rank_cases.generate_rows, plan, how, ranks=4)
    computes = ["temporal" in kinds for kinds in computed_kinds(plan)]
    for found in ranks:
        assert_same(found["predictions"], expected["predictions"])
        assert found["computed"] == expected["computed"]
        assert found["per step"] == [2 * DEPTH * computed for computed in computes]
        assert found["cache"] * 4 == expected["cache"]
        assert any(note.startswith("batch: 1 of 2 rows") for note in found["notes"])
        assert "sharded axis: t, over 2 ranks" in found["notes"]
    assert ranks[0]["sent"] == predicted(plan, 2, 4, shard="t")


@pytest.mark.sample(
    "different plans-2-do not run the same program",
    "other machines-2-do not run the same program",
)
@pytest.mark.parametrize(
    ("case", "num_ranks", "message"),
    [
        ("one call", 2, r"But a step makes 1 call\. Leave batch_mesh and batch_parallel out"),
        ("mixed", 2, r"aten.flip.*stands in the way.*Leave batch_mesh and batch_parallel out"),
        ("different plans", 2, "do not run the same program"),
        ("other machines", 2, "do not run the same program"),
        ("other meshes", 4, "do not form one mesh.*rank 2 shares tokens with .0, 1, 2, 3."),
    ],
)
def test_what_cannot_be_shared_is_an_error_on_every_rank(
    world: World, case: str, num_ranks: int, message: str
) -> None:
    if case == "other meshes":  # ranks that know their mesh do not meet again
        world.begin_anew(num_ranks)
    results: list[Any] = world.run(rank_cases.refused_rows, case, ranks=num_ranks)
    assert all(re.search(message, found) for found in results), results


@pytest.mark.sample("linear3-rows-2")
@pytest.mark.parametrize(
    ("plan", "how", "num_ranks"),
    [
        ("linear3", "rows", 2),
        ("before the gate", "rows", 2),
        ("computes always", "rows", 2),
        ("behind the gate", "counted", 4),
        ("linear3", "mesh", 4),
    ],
)
def test_halves_of_the_ranks_compute_one_of_two_calls_each(
    world: World, plan: str, how: str, num_ranks: int
) -> None:
    case = (plan, how, 1, "two calls")
    expected, always = alone(*case), alone("computes always", *case[1:])
    for found in world.run(rank_cases.generate_rows, *case, ranks=num_ranks):
        assert torch.equal(found["predictions"], expected["predictions"])
        for kind, computed in always["computed"].items():  # both calls at step 0
            all_of_both = expected["computed"][kind] + computed // NUM_STEPS
            assert 2 * found["computed"][kind] == all_of_both
        assert any("computes one of the two calls of a step" in note for note in found["notes"])
        if num_ranks == 2:
            assert found["per step"] == [0] * NUM_STEPS


UNSHARED = {
    "other lengths": "the two calls of a step have inputs of other shapes",
    "other latents": "the two calls of a step have another 'hidden_states'",
    "another prompt": "the prompts, the size or the number of calls changed",
}


@pytest.mark.sample("other latents")
@pytest.mark.parametrize("case", UNSHARED)
def test_calls_that_cannot_be_shared_are_an_error_on_every_rank(world: World, case: str) -> None:
    results: list[Any] = world.run(rank_cases.refused_calls, case, ranks=2)
    for found in results:
        assert found.startswith("ShardingError") and UNSHARED[case] in found, found


@pytest.mark.long
def test_a_rank_that_fails_ends_those_that_share_the_batch_and_those_that_share_the_tokens(
    world: World,
) -> None:
    ranks = world.run(rank_cases.failing, [("3", 1.0)], True, ranks=4)
    error = "OutOfMemoryError: no memory left"
    assert ranks.pop(3)[0]["raised"] == error
    message = f"Rank 3 of the mesh failed in a call of the model: {error}"
    for (found,) in ranks:
        assert found["raised"] == f"RanksError: {message}"
        assert found["seconds"] < 6
