"""Of plans that compute as much, the one of the fewest bytes comes first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pab_compile
from helpers.latte import draw_latents, draw_prompt, tiny_latte
from pab_compile import CalibrationError, CommReport, PlanError, Schedule, least_traffic

NUM_STEPS, NUM_RANKS, DEPTH = 12, 2, 1
M = 2 * 4 * 16 * 16 * 4
"""Bytes of the tokens of the tiny Latte: two rows, four frames, 16 places, 16 channels, float32."""
GATHERED = 2 * 4 * 4 * 8 * 8 * 4 // 2
"""Bytes of its output that a rank sends to the other."""


def compared(*plans: tuple[int, int], **options: Any) -> dict[str, CommReport]:
    """Plans by their ranges for spatial and temporal attention."""
    named = {
        f"{spatial}/{temporal}": {
            "ranges": {"spatial": spatial, "temporal": temporal},
            "window": (0.0, 1.0),
            **options,
        }
        for spatial, temporal in plans
    }
    return predicted(named)


def predicted(plans: dict[str, dict[str, Any]]) -> dict[str, CommReport]:
    return least_traffic(
        tiny_latte(DEPTH),
        hidden_states=draw_latents(batch=2),
        timestep=torch.tensor([500, 500]),
        encoder_hidden_states=draw_prompt(batch=2),
        num_ranks=NUM_RANKS,
        schedule=Schedule(NUM_STEPS),
        plans=plans,
    )


def bytes_by_hand(computed_steps: int) -> float:
    """Two all-to-alls per site that exchanges; half of a rank's half goes to the other rank."""
    return DEPTH * computed_steps * 2 * M / 4 + NUM_STEPS * GATHERED


def test_on_one_axis_the_plan_that_computes_what_exchanges_most_seldom_is_first() -> None:
    found = compared((3, 3), (6, 2), (2, 6), sequence_parallel=NUM_RANKS, shard="t")
    assert list(found) == ["2/6", "3/3", "6/2"]
    for (name, report), temporal_steps in zip(found.items(), (2, 4, 6), strict=True):
        assert report.axis == "t", name
        assert report.wire_bytes == bytes_by_hand(temporal_steps), name


def test_the_axis_is_chosen_with_the_plan_so_that_either_pyramid_beats_the_even_plan() -> None:
    found = compared((3, 3), (6, 2), (2, 6))
    assert [(name, report.axis) for name, report in found.items()] == [
        ("6/2", "h"),  # as good as the next, and given before it
        ("2/6", "t"),
        ("3/3", "t"),
    ]
    assert [report.wire_bytes for report in found.values()] == [
        bytes_by_hand(2),
        bytes_by_hand(2),
        bytes_by_hand(4),
    ]


def test_plans_that_treat_all_sites_alike_exchange_the_same_whichever_steps_they_compute(
    tmp_path: Path,
) -> None:
    names = [
        site.name
        for site in pab_compile.explain(
            tiny_latte(DEPTH),
            hidden_states=draw_latents(),
            timestep=torch.tensor([500]),
            encoder_hidden_states=draw_prompt(),
        ).sites
    ]
    plans = {}
    for computed in ((0, 1, 2, 3), (0, 4, 6, 11)):
        row: list[Any] = ["C" if step in computed else 0 for step in range(NUM_STEPS)]
        path = tmp_path / f"{computed}.json"
        content = {"format": "pab_compile.plan/1", "num_steps": NUM_STEPS}
        path.write_text(json.dumps({**content, "sites": dict.fromkeys(names, row)}))
        plans[str(computed)] = {"plan": path}
    found = predicted(plans)
    assert {report.wire_bytes for report in found.values()} == {bytes_by_hand(4)}


def test_plans_that_do_not_compute_equally_often_are_not_compared() -> None:
    # Of 5 sites 3 compute at all 12 steps; one each at 6 and 2, and at 6 and 3 steps.
    with pytest.raises(CalibrationError, match=r"sites times steps: 2/6 44, 2/4 45\)"):
        compared((2, 6), (2, 4))


def test_a_plan_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    content = {"format": "pab_compile.plan/1", "num_steps": NUM_STEPS}
    path.write_text(json.dumps({**content, "sites": {"elsewhere": ["C"] * NUM_STEPS}}))
    with pytest.raises(PlanError, match="elsewhere"):
        predicted({"known": {"ranges": {}}, "strange": {"plan": path}})
