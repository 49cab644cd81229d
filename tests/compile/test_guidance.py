"""Guidance that is left out at single steps equals arithmetic by hand. In doubt it is computed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import pab_compile
from helpers.captured import SmallDiT, usual

STEPS = 8
COMBINE = (-0.4, 1.4)
ENTRIES = ["C", "C", "C", list(COMBINE), "C", "C", list(COMBINE), "C"]
LEFT_OUT = {"2": [0.3, 0.6], "5": [-0.5, 0.2, 1.2]}
SOURCES = {2: (0, 1), 5: (0, 1, 4)}


@pytest.fixture(scope="module")
def dit() -> SmallDiT:
    torch.manual_seed(0)
    return SmallDiT(2).requires_grad_(False)


def compiled(
    dit: Any, path: Path, weights: Any = LEFT_OUT, first: str = "first", **more: Any
) -> Any:
    guidance = {"conditional": first, "weights": weights}
    content = {"format": "pab_compile.plan/2", "num_steps": STEPS, "cut": "output"}
    path = path / f"{len(list(path.iterdir()))}.json"
    path.write_text(json.dumps({**content, "entries": ENTRIES, "guidance": guidance}))
    options = {"plan": str(path), "inner": "eager", **more}
    return torch.compile(dit, backend="pab", options=options)


def timesteps() -> torch.Tensor:
    return torch.linspace(1000, 125, STEPS)


def prompts(count: int = 2) -> list[torch.Tensor]:
    return [usual("prompt") * (1 - 0.4 * i) for i in range(count)]


def run(model: Any, order: Sequence[int] = (0, 1), texts: Any = None) -> torch.Tensor:
    """Calls the model once per prompt at each step, in an order; all that it returned."""
    x, found = usual("latents"), []
    texts = prompts() if texts is None else texts
    for t in timesteps():
        outputs = {which: model(x, t.expand(2), texts[which]) for which in order}
        now = [outputs[which] for which in sorted(outputs)]
        found.append(torch.stack(now))
        x = x - (now[-1] + 2 * (now[0] - now[-1])) / STEPS
    return torch.stack(found)


def by_hand(dit: Any, left_out: Any = LEFT_OUT) -> tuple[torch.Tensor, int]:
    """The same with the plan written out; also the number of calls."""
    x, found, calls = usual("latents"), [], 0
    one, two = prompts()
    for step, t in enumerate(timesteps()):
        if ENTRIES[step] != "C":
            before = [s for s in range(step) if ENTRIES[s] == "C"][-2:]
            cond, free = (
                sum(w * found[s][i] for w, s in zip(COMBINE, before, strict=True)) for i in (0, 1)
            )
        else:
            cond, calls = dit(x, t.expand(2), one), calls + 1
            if str(step) in left_out:
                pairs = zip(left_out[str(step)], SOURCES[step], strict=True)
                free = cond - sum(w * (found[s][0] - found[s][1]) for w, s in pairs)
            else:
                free, calls = dit(x, t.expand(2), two), calls + 1
        found.append(torch.stack([cond, free]))
        x = x - (free + 2 * (cond - free)) / STEPS
    return torch.stack(found), calls


def test_the_second_call_is_answered_from_the_differences_of_the_plan(
    dit: SmallDiT, tmp_path: Path
) -> None:
    expected, calls = by_hand(dit)
    model = compiled(dit, tmp_path)
    for _ in range(2):
        torch.testing.assert_close(run(model), expected, atol=1e-5, rtol=1e-5)
    seen = pab_compile.stats(model)
    assert (seen.computed, seen.notes) == ({"output": calls}, ())
    assert calls == 10
    without, _ = by_hand(dit, {})
    assert (without - expected).abs().max() > 1e-3


def test_other_weights_compile_nothing(dit: SmallDiT, tmp_path: Path) -> None:
    torch._dynamo.reset()
    compiled(dit, tmp_path)
    handle = pab_compile.enable(dit, plan=str(next(tmp_path.iterdir())), inner="eager")
    try:
        run(dit)
        (before,) = handle.stats().values()
        other = {"2": [0.1, 0.7], "5": [0.5, -0.2, 0.9]}
        compiled(dit, tmp_path, other)
        handle.set(str(tmp_path / "1.json"))
        actual = run(dit)
        (after,) = handle.stats().values()
    finally:
        handle.disable()
    torch.testing.assert_close(actual, by_hand(dit, other)[0], atol=1e-5, rtol=1e-5)
    assert (after.num_pieces, after.compile_seconds) == (before.num_pieces, before.compile_seconds)


def three_prompts(model: Any) -> torch.Tensor:
    return run(model, (0, 1, 2), prompts(3))


@pytest.mark.parametrize(
    ("first", "loop", "words"),
    [
        pytest.param("first", three_prompts, "a step makes 3", id="three calls"),
        pytest.param("first", lambda model: run(model, (0,)), "a step makes one", id="one call"),
        pytest.param("second", lambda model: run(model, (1, 0)), "came first there", id="order"),
        pytest.param(
            "first",
            lambda model: run(model, (0, 1), [usual("prompt")] * 2),
            "not of one video with two prompts",
            id="one prompt",
        ),
    ],
)
def test_in_doubt_guidance_is_computed(
    dit: SmallDiT, tmp_path: Path, first: str, loop: Any, words: str
) -> None:
    model = compiled(dit, tmp_path, first=first)
    actual = loop(model)
    torch._dynamo.reset()
    expected = loop(compiled(dit, tmp_path, {}, first=first))
    torch.testing.assert_close(actual, expected)
    assert any(words in note for note in pab_compile.stats(model).notes)


def test_with_a_budget_guidance_is_computed(dit: SmallDiT, tmp_path: Path) -> None:
    model = compiled(dit, tmp_path, cache_budget="1 GB")
    run(model)
    assert any("with a budget" in note for note in pab_compile.stats(model).notes)


def test_calls_that_swap_at_a_step_are_computed_there(dit: SmallDiT, tmp_path: Path) -> None:
    model = compiled(dit, tmp_path)
    x, counts = usual("latents"), []
    texts = prompts()
    for step, t in enumerate(timesteps()):
        order = (1, 0) if step == 5 else (0, 1)
        for which in order:
            model(x, t.expand(2), texts[which])
        counts.append(pab_compile.stats(model).computed["output"])
    assert [b - a for a, b in zip([0, *counts], counts, strict=False)] == [2, 2, 1, 0, 2, 2, 0, 2]
    assert any("came first there" in note for note in pab_compile.stats(model).notes)
