"""Ways to share a generation are compared by the time that is predicted for each."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pab_compile
from helpers.broken_forwards import SHAPE, BrokenDiT, draw, noise, prompts
from helpers.joint_prompts import TwoPrompts, two_prompts
from helpers.latte import draw_latents, draw_prompt, tiny_latte
from pab_compile import Link, Machine, OptionError, Schedule, ShardingError, Splits
from pab_compile.forecast.seconds import generation_of

STEPS = 10
SLOW, FREE = Link(0.0, 1e4), Link(0.0, float("inf"))


def compared(machine: Machine | float, num_ranks: int, rows: int, **more: Any) -> Splits:
    return pab_compile.splits(
        tiny_latte(depth=1),
        hidden_states=draw_latents(batch=rows),
        timestep=torch.tensor([500] * rows),
        encoder_hidden_states=draw_prompt(batch=rows),
        num_ranks=num_ranks,
        schedule=Schedule(STEPS, tuple(900.0 - 100 * step for step in range(STEPS))),
        machine=machine,
        **more,
    )


def test_every_split_is_listed_with_its_time_and_the_fastest_is_the_best() -> None:
    found = compared(Machine(1e6, SLOW, SLOW), 4, rows=2)
    ways = {(row.num_batch_ranks, row.num_token_ranks, row.axis) for row in found.rows}
    assert {(1, 4, "t"), (1, 4, "h"), (2, 2, "t"), (4, 1, "")} <= ways
    times = [row.generation.seconds for row in found.rows if row.generation]
    assert times == sorted(times)
    assert found.best is found.rows[0]
    assert found.best.num_batch_ranks == 2  # it exchanges less than four that share the tokens
    assert found.best.options["batch_parallel"] == found.best.options["sequence_parallel"] == 2
    assert "4 x 1: " in str(found)  # there are two rows


def test_rings_are_weighed_where_the_ranks_fill_more_than_one_node() -> None:
    inside, across = Link(0.0, 1e9), Link(0.0, 1e3)
    two = compared(Machine(1e6, inside, across, node_size=2), 4, rows=1)
    ways = {(row.num_token_ranks, row.ring) for row in two.rows}
    assert {(4, None), (4, 2), (4, 4)} <= ways
    one = compared(Machine(1e6, inside, across, node_size=4), 4, rows=1)
    assert {row.ring for row in one.rows} == {None}


def test_what_a_ring_passes_on_goes_between_nodes_and_its_heads_do_not() -> None:
    near = Link(0.0, 1e9)
    model, inputs = TwoPrompts().requires_grad_(False), two_prompts(5, 5)
    report = pab_compile.comm(
        model, *inputs, num_ranks=4, schedule=Schedule(STEPS), options={"ring_parallel": 2}
    )
    passed = [row for row in report.rows if row.is_passed_on]
    switched = [row for row in report.rows if row.neighbours and not row.is_passed_on]
    assert passed and switched and {row.neighbours for row in switched} == {2}
    machine = Machine(1.0, near, Link(0.0, 1e3), node_size=2)
    least = generation_of(machine, report, report.work, passed).exchange
    assert least == pytest.approx(sum(row.wire_bytes for row in passed) / 1e3)
    most = generation_of(machine, report, report.work, switched).exchange
    assert most == pytest.approx(sum(row.wire_bytes for row in switched) / 1e9)


def test_a_split_has_the_time_and_the_bytes_of_its_options() -> None:
    machine = Machine(1e6, SLOW, SLOW)
    row = next(row for row in compared(machine, 2, rows=2).rows if row.axis == "t")
    inputs = {
        "hidden_states": draw_latents(batch=2),
        "timestep": torch.tensor([500] * 2),
        "encoder_hidden_states": draw_prompt(batch=2),
        "schedule": Schedule(STEPS, tuple(900.0 - 100 * step for step in range(STEPS))),
    }
    model, options = tiny_latte(depth=1), row.options
    report = pab_compile.comm(model, options=options, num_ranks=2, **inputs)  # type: ignore[arg-type]
    times = pab_compile.scaling(
        model,
        options={"shard": "t"},
        machine=machine,
        ranks=(2,),
        **inputs,  # type: ignore[arg-type]
    )
    assert row.generation == times[2].planned
    assert row.wire_bytes == report.wire_bytes


def test_two_calls_of_a_step_are_shared_by_halves_of_the_ranks() -> None:
    one, two = (compared(Machine(1e6, FREE, FREE), 2, rows=1, calls=n) for n in (1, 2))
    assert all(row.num_batch_ranks == 1 for row in one.rows)
    assert two.best.options == {"batch_parallel": 2}
    tokens = next(row.generation for row in two.rows if row.axis == "t")
    alone = next(row.generation for row in one.rows if row.axis == "t")
    assert tokens is not None and alone is not None
    assert tokens.compute == pytest.approx(2 * alone.compute)


def test_too_many_ranks_are_an_error_that_says_why() -> None:
    found = compared(1.0, 512, rows=1)
    with pytest.raises(
        ShardingError, match=r"So many ranks cannot share the model(?s:.*)fewer than"
    ):
        print(found.best)


class InTwoGraphs(BrokenDiT):
    """A model of its own, since equal ones are looked at once."""


def test_ways_for_a_forward_of_several_graphs_add_up_those_of_each() -> None:
    inputs = {"latents": noise(*SHAPE), "timestep": torch.tensor([5.0, 5.0]), **prompts(1)["lane1"]}
    how: dict[str, Any] = {"num_ranks": 2, "schedule": Schedule(STEPS)}
    model = draw(InTwoGraphs, ("blocks",))
    found = pab_compile.splits(model, **inputs, machine=Machine(1e6, SLOW, SLOW), **how)
    own = next(row for row in found.rows if row.num_token_ranks == 2 and row.axis == "")
    assert own.options == {"sequence_parallel": 2}
    assert "the best axis of each graph" in own.words
    report = pab_compile.comm(model, **inputs, **how)
    assert own.wire_bytes == report.wire_bytes
    assert {row.axis for row in found.rows if row.num_token_ranks == 2} >= {"", "t", "h"}
    times = [row.generation.seconds for row in found.rows if row.generation]
    assert times == sorted(times)


def test_what_splits_finds_cannot_be_given() -> None:
    with pytest.raises(OptionError, match="splits finds shard"):
        compared(1.0, 2, rows=1, options={"shard": "t"})
