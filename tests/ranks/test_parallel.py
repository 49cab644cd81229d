"""Several processes share the tokens of a video: real collectives, over gloo."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch

import helpers.rank_cases as rank_cases
from helpers.latte import assert_same
from helpers.rank_cases import DEPTH, NUM_STEPS, PLANS
from helpers.world import World

alone = functools.cache(functools.partial(rank_cases.generate, None))


# All in one process of a parallel run: the ranks are started once.
pytestmark = pytest.mark.xdist_group("ranks")


def check_generation(world: World, plan: str, guidance: str, num_ranks: int) -> None:
    expected = alone(plan, guidance)
    lanes = 2 if guidance == "two calls" else 1
    uneven = 4 % num_ranks != 0  # frames; an uneven gather at the end is an all-to-all, too
    tensor = (2 if guidance == "batched" else 1) * 4 * 16 * 16 * 4  # rows, t, h*w, channels, bytes
    for found in world.run(rank_cases.generate, plan, guidance, ranks=num_ranks):
        assert_same(found["predictions"], expected["predictions"])
        assert found["computed"] == expected["computed"]
        exchanged = [number - lanes * uneven for number, _ in found["per step"]]
        computes = ["temporal" in kinds for kinds in computed_kinds(plan)]
        assert exchanged == [2 * DEPTH * lanes * computed for computed in computes]
        if not uneven:
            away = lanes * 2 * DEPTH * tensor * (num_ranks - 1) // num_ranks**2
            assert [sent for _, sent in found["per step"]] == [away * c for c in computes]
            assert found["cache"] * num_ranks == expected["cache"]


def computed_kinds(plan: str) -> list[set[str]]:
    """The kinds that compute at every step, by the paper's rule."""
    ranges: dict[str, int] = PLANS[plan]["ranges"]
    low, high = PLANS[plan].get("window", (0.0, 1.0))
    inside = [low <= step / NUM_STEPS < high for step in range(NUM_STEPS)]
    kinds = ("spatial", "temporal", "cross", "mlp")
    return [
        {k for k in kinds if not inside[step] or step % ranges.get(k, 1) == 0}
        for step in range(NUM_STEPS)
    ]


@pytest.mark.sample("before the gate-two calls-2")
@pytest.mark.parametrize(
    ("plan", "guidance", "num_ranks"),
    [
        ("before the gate", "two calls", 2),
        ("behind the gate", "batched", 3),
        ("predicted and coalesced", "none", 2),
    ],
)
def test_ranks_generate_what_one_process_does_and_exchange_nothing_on_reuse(
    world: World, plan: str, guidance: str, num_ranks: int
) -> None:
    check_generation(world, plan, guidance, num_ranks)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("plan", "num_ranks"), [("computes always", 4), ("with MLPs", 3)])
def test_any_number_of_ranks_generates_what_one_process_does(
    world: World, plan: str, num_ranks: int
) -> None:
    check_generation(world, plan, "batched", num_ranks)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "axis", "cut", "num_ranks", "exchanges"),
    [
        ("cogvideox", "s", "attention", 2, 2 * 4),
        ("wan", "w", "attention", 4, 2 * 6),  # two heads: in rings of two
        ("flux", "s", "gated", 2, 4 * 4),
        ("hunyuan_video", "s", "gated", 2, 2 * 4),
    ],
)
def test_attention_over_all_tokens_switches_to_heads_and_not_at_all_on_reuse(
    world: World, name: str, axis: str, cut: str, num_ranks: int, exchanges: int
) -> None:
    expected, _ = rank_cases.generate_dit(None, name, axis, cut)
    case = (name, axis, cut)
    for outputs, per_step in world.run(rank_cases.generate_dit, *case, ranks=num_ranks):
        for got, whole in zip(outputs, expected, strict=True):
            assert_same(got, whole)
        gathers = min(per_step)
        assert gathers <= 1  # q, k, v and the output of every site at steps 0, 2 and 4
        assert [num - gathers for num in per_step] == [exchanges, 0] * 3


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "num_frames", "guidance"),
    [
        ("open-sora", 3, "two calls"),
        ("open-sora-plan-1.1", 4, "batched"),
        ("open-sora-plan-1.2", 3, "two calls"),
    ],
)
def test_the_models_of_the_paper_generate_what_one_process_does(
    world: World, name: str, num_frames: int, guidance: str
) -> None:
    case = (name, num_frames, guidance)
    expected = rank_cases.generate_example(None, *case)
    lanes = 2 if guidance == "two calls" else 1
    for found in world.run(rank_cases.generate_example, *case, ranks=2):
        assert_same(found["predictions"], expected["predictions"])
        assert found["computed"] == expected["computed"]
        per_site = 2 if "temporal" in found["kinds"] else 4  # q, k, v to the heads, the output back
        gathers = num_frames % 2  # an uneven one is an all-to-all, too
        assert [num // lanes - gathers for num in found["per step"]] == [
            per_site * computes for computes in (True, False, False, True, False, True)
        ]


@pytest.mark.long
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("different plans", "do not run the same program"),
        ("a bad option", "could not compile the model: OptionError|is not a choice"),
        ("wrong number", "sequence_parallel=2, but 4 processes"),
    ],
)
def test_what_cannot_work_is_an_error_on_every_rank(world: World, case: str, message: str) -> None:
    results: list[Any] = world.run(rank_cases.refused, case, ranks=2)
    assert all(re.search(message, found) for found in results), results


@pytest.mark.long
@pytest.mark.slow
def test_pieces_with_collectives_go_through_inductor(world: World) -> None:
    plan = ("before the gate", "none")
    for found in world.run(rank_cases.generate, *plan, "inductor", ranks=2):
        assert_same(found["predictions"], alone(*plan)["predictions"])
        assert found["pieces"] == alone(*plan)["pieces"]


@pytest.mark.sample("bfloat16")
@pytest.mark.parametrize(
    ("dtype", "inner", "bound"),
    [
        pytest.param(torch.bfloat16, "eager", 2e-2, id="bfloat16"),
        pytest.param(torch.float32, "inductor", 1e-5, id="inductor"),
    ],
)
def test_rings_run_in_other_types_and_through_inductor(
    world: World, dtype: torch.dtype, inner: str, bound: float
) -> None:
    expected, _ = rank_cases.in_rings(None, dtype, "eager")
    for found, calls in world.run(rank_cases.in_rings, dtype, inner, ranks=2):
        for one, other in zip(found, expected, strict=True):
            assert (one - other).abs().max() < bound * other.abs().max()
        assert inner != "eager" or calls > 0


@pytest.mark.long
def test_rows_of_a_mesh_make_videos_of_their_own(world: World) -> None:
    expected = [rank_cases.replica(None, row) for row in range(2)]
    for rank, found in enumerate(world.run(rank_cases.replica, ranks=4, alone=True)):
        assert_same(found, expected[rank // 2])
