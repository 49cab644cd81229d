"""Traffic is predicted from the graph, for ranks that do not exist."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import sympy
import torch

import pab_compile
from helpers.broken_forwards import SHAPE, BrokenDiT, draw, noise, prompts
from helpers.joint_prompts import TwoPrompts, two_prompts
from helpers.latte import draw_latents, draw_prompt, tiny_latte
from models import open_sora, rectified_flow
from pab_compile import CommReport, OptionError, Schedule

# Open-Sora 1.2, 2 s of 480p: two rows (guidance), 15 latent frames of 30 x 53 tokens.
FRAMES, HEIGHT, WIDTH = 15, 60, 106
M = 2 * FRAMES * 1590 * 1152 * 2


@functools.cache
def open_sora_report(num_ranks: int, depth: int) -> CommReport:
    """The model at its real width on meta tensors, sampled as published."""
    with torch.device("meta"):
        model = open_sora.STDiT3(replace(open_sora.XL_2, depth=depth)).to(torch.bfloat16).eval()
        inputs = {
            "fps": torch.empty(1),
            "height": torch.empty(1),
            "width": torch.empty(1),
        }
        latents = torch.empty(2, 4, FRAMES, HEIGHT, WIDTH, dtype=torch.bfloat16)
        prompt = torch.empty(2, 1, 300, 4096, dtype=torch.bfloat16)
        arguments = (latents, torch.empty(2), prompt, torch.ones(2, 300, dtype=torch.int64))
    timesteps = rectified_flow.timesteps(30, 480, 854, 51).bfloat16().trunc().tolist()
    return pab_compile.comm(
        model.requires_grad_(False),
        *arguments,
        **inputs,
        num_ranks=num_ranks,
        schedule=Schedule(30, tuple(timesteps)),
        options={"ranges": "open-sora", "cut": "gated"},
    )


@pytest.mark.sample("1")
@pytest.mark.parametrize("depth", [1, 2])
def test_bytes_of_open_sora_on_eight_ranks_are_the_published_ones(depth: int) -> None:
    """Blocks at their real size exchange alike, so one or two of them tell about all 28."""
    found = open_sora_report(8, depth)
    assert found.axis == "t"
    (row,) = (row for row in found.rows if row.what == "temporal")
    assert (row.num_sites, row.collectives, row.computed_steps) == (depth, 2, 17)
    assert found.convention_bytes == row.convention_bytes == depth * 17 * 2 * M / 8
    assert round(28 // depth * found.convention_bytes / 1e9, 3) == 13.078
    assert round(28 // depth * found.convention_bytes_without_reuse / 1e9, 3) == 23.079
    b, t, h, w, n, steps = sympy.symbols("b t h w N steps_temporal")
    size = {b: 2, t: FRAMES, h: HEIGHT // 2, w: WIDTH // 2, n: 8}
    assert sympy.expand(28 // depth * found.formula.subs(size) - steps * (28 * 2 * M // 8)) == 0


@functools.cache
def latte_report(num_ranks: int | None = 2, **options: Any) -> CommReport:
    return pab_compile.comm(
        tiny_latte(depth=1),
        hidden_states=draw_latents(batch=2),
        timestep=torch.tensor([500, 500]),
        encoder_hidden_states=draw_prompt(batch=2),
        num_ranks=num_ranks,
        schedule=Schedule(10, tuple(900.0 - 100 * step for step in range(10))),
        options={"ranges": {"spatial": 2, "temporal": 5}, "window": (0.0, 1.0), **options},
    )


def test_a_report_counts_computed_steps_only() -> None:
    found = latte_report()
    tensor = 2 * 4 * 16 * 16 * 4
    assert found.convention_bytes == 2 * 2 * tensor / 2
    assert found.convention_bytes_without_reuse == 10 * 2 * tensor / 2
    assert found.num_collectives == 2 * 2 + 10  # and one gather per step


def test_closed_form_and_numbers_agree() -> None:
    found = latte_report()
    (row,) = (row for row in found.rows if row.what == "temporal")
    b, t, h, w, n, steps = sympy.symbols("b t h w N steps_temporal")
    assert sympy.simplify(row.formula - steps * 2 * 64 * b * t * h * w / n) == 0
    values = {b: 2, t: 4, h: 4, w: 4, n: 2, steps: 2}
    assert float(found.formula.subs(values)) == found.convention_bytes


def test_a_report_in_print_says_axis_reasons_and_totals() -> None:
    text = str(latte_report())
    assert "sharded axis: t, over 2 ranks" in text
    assert "temporal attention runs along h*w, computed at 20% of the steps" in text
    assert "14 collectives" in text and "without reuse" in text


def test_the_gather_of_the_batch_is_counted_apart() -> None:
    alone, both = latte_report(2, batch_parallel=2), latte_report(4, batch_parallel=2)
    row = 4 * 4 * 8 * 8 * 4  # channels, frames, rows and columns of the latents, bytes
    assert [(r.what, r.along, r.wire_bytes) for r in alone.rows] == [
        ("gather of the batch", "b", 10 * row)
    ]
    assert (alone.axis, alone.num_ranks, alone.num_batch_ranks) == ("", 1, 2)
    assert alone.num_collectives == 10 and alone.convention_bytes == 0
    assert [(r.what, r.along) for r in both.rows] == [
        ("temporal", "h*w"),
        ("gather at the end", "t"),
        ("gather of the batch", "b"),
    ]
    assert both.rows[2].wire_bytes == 10 * row
    assert both.convention_bytes * 2 == latte_report(2).convention_bytes  # of half the rows
    assert alone.work.flops < 0.6 * latte_report(1).work.flops
    assert "batch: 1 of 2 rows per rank" in str(both) and "sharded axis: t" in str(both)


def test_the_number_of_ranks_is_given_or_follows_from_the_options() -> None:
    assert latte_report(2, shard="h").axis == "h"
    assert latte_report(None, sequence_parallel=2, shard="w").num_ranks == 2
    assert latte_report(None, sequence_parallel=2, batch_parallel=2).num_batch_ranks == 2
    assert latte_report(4, sequence_parallel=2).num_ranks == 4  # predicted, whatever runs
    with pytest.raises(OptionError, match="give num_ranks, or options with mesh"):
        latte_report(None, shard="t")
    with pytest.raises(OptionError, match="num_ranks=3, and 2 ranks share the batch"):
        latte_report(3, batch_parallel=2)


def test_ranks_that_do_not_divide_are_counted_on_the_wire() -> None:
    with pytest.raises(pab_compile.ShardingError):
        latte_report(17)
    uneven = latte_report(3)
    rows = [row for row in uneven.rows if row.what == "temporal"]
    assert sum(row.wire_bytes for row in rows) > 0


def test_explain_says_which_axis_is_sharded_and_why_without_any_process() -> None:
    found = pab_compile.explain(
        tiny_latte(depth=1),
        hidden_states=draw_latents(batch=2),
        timestep=torch.tensor([500, 500]),
        encoder_hidden_states=draw_prompt(batch=2),
        options={"sequence_parallel": 2, "batch_parallel": 2},
    )
    assert any(note.startswith("batch: 1 of 2 rows per rank") for note in found.notes)
    assert "sharded axis: t, over 2 ranks" in found.notes
    assert any("1 x spatial attention runs along t" in note for note in found.notes)  # h, w


def test_prompts_of_several_lengths_count_as_they_are() -> None:
    def sent(*lengths: int) -> float:
        with torch.device("meta"):
            model, inputs = TwoPrompts().requires_grad_(False), two_prompts(*lengths)
        return pab_compile.comm(model, *inputs, num_ranks=2, schedule=Schedule(10)).wire_bytes

    assert sent(3, 3) < sent(5, 5)
    assert sent(3, 5) == sent(5, 3) == (sent(3, 3) + sent(5, 5)) / 2


class InTwoGraphs(BrokenDiT):
    """A model of its own, since equal ones are looked at once."""


def test_all_graphs_of_a_forward_that_hold_attentions_count() -> None:
    inputs = {"latents": noise(*SHAPE), "timestep": torch.tensor([5.0, 5.0]), **prompts(1)["lane1"]}
    models = (draw(BrokenDiT), draw(InTwoGraphs, ("blocks",)))
    whole, broken = (
        pab_compile.comm(model, **inputs, num_ranks=2, schedule=Schedule(10)) for model in models
    )
    assert (whole.axis, broken.axis) == ("t", "t, h")  # each graph has the axis that suits it best
    assert [row.what for row in broken.rows] == ["gather at the end"] * 2
    assert broken.computed == whole.computed
