"""A graph that runs first in the middle of a generation has cached nothing: ``stats`` says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import pab_compile
from helpers.eager_code import NUM_STEPS, RANGES, Dit, calls, compiled
from helpers.latte import compiled_pab
from pab_compile.runtime.late import LateGraphs

from .test_turns import FLOOR, Layers, given


class Switched(Dit):
    """Its code takes another way from some step on, so Dynamo compiles it again."""

    doubles = False

    def block(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        y = super().block(x, context)
        return 2 * y if self.doubles else y


def notes_of(model: Switched, first: int) -> tuple[str, ...]:
    """What is noted if the other way is taken from a step on."""
    run = compiled(model, RANGES)
    for step, inputs in enumerate(calls()):
        model.doubles = step >= first
        with pab_compile.step(step, NUM_STEPS):
            run(*inputs)
    return pab_compile.stats(run).notes


@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_model_that_is_compiled_again_says_from_which_step_on(first: int) -> None:
    model = Switched().eval().requires_grad_(False)
    [note] = notes_of(model, first)
    assert note.startswith(f"this form of the model ran first at step {first}, so")
    assert notes_of(model, NUM_STEPS) == ()  # the same code again, at all steps
    assert notes_of(model, 0) == ()


def test_outputs_that_a_plan_combines_and_that_were_not_cached_are_said(tmp_path: Path) -> None:
    row = ["C", "C", "C", [0.5, 0.5], "C", "C"]
    plan = {"format": "pab_compile.plan/2", "num_steps": NUM_STEPS, "cut": "output", "entries": row}
    (path := tmp_path / "plan.json").write_text(json.dumps(plan))
    model = Switched().eval().requires_grad_(False)
    run = compiled_pab(model, plan=str(path))
    for step, inputs in enumerate(calls()):
        model.doubles = step >= 2
        with pab_compile.step(step, NUM_STEPS):
            run(*inputs)
    [note] = pab_compile.stats(run).notes
    assert note.startswith("some steps computed although the plan combines earlier outputs")


def test_where_all_would_compute_anyway_nothing_is_said() -> None:
    model = Switched().eval().requires_grad_(False)
    run = compiled(model, {"full": 2, "cross": 2})
    for step, inputs in enumerate(calls()):
        model.doubles = step >= 2
        with pab_compile.step(step, NUM_STEPS):
            run(*inputs)
    assert pab_compile.stats(run).notes == ()


def test_of_several_graphs_those_that_are_new_are_named() -> None:
    model = Layers().eval().requires_grad_(False)
    run = compiled_pab(model, **FLOOR)
    for step in range(4):
        model.order = [0] if step == 0 else [0, 1, 2]
        with pab_compile.step(step, 4):
            run(**given(step))
    [note] = pab_compile.stats(run).notes
    assert note.startswith("graphs 2-3 of the forward (test_turns.py:")
    assert "ran first at step 1," in note


def test_each_step_has_a_note_and_few_places() -> None:
    late = LateGraphs({f"g{n}": (n, f"file.py:{n // 2}") for n in range(1, 10)})
    for n in (1, 2, 3, 5, 7, 8, 9):
        late.add(f"g{n}", 2)
    late.add("g4", 1)
    first, second = late.notes()
    assert first.startswith("graph 4 of the forward (file.py:2) ran first at step 1,")
    assert second.startswith(
        "graphs 1-3, 5, 7-9 of the forward (file.py:0, file.py:1, file.py:2, ...) ran first at "
    )
