"""In doubt, guidance that a plan leaves out is computed. A first guess of steps is no doubt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import pab_compile
from helpers.captured import usual
from helpers.guided import (
    CALLS,
    FORMS,
    SECOND_HALF,
    STEPS,
    Call,
    Small,
    by_hand,
    compiled,
    in_a_batch,
    in_calls,
    prompts,
    run,
    small,
)
from helpers.latte import assert_same


@pytest.fixture(scope="module")
def dit() -> Small:
    return small()


def of_two_videos(model: Any) -> Call:
    """Two videos side by side, each with a prompt of its own."""

    def call(x: torch.Tensor, t: torch.Tensor, texts: Any) -> list[torch.Tensor]:
        latents = (x, x.flip(0))
        return [model(y, t.expand(2), text) for y, text in zip(latents, texts, strict=True)]

    return call


def unlike_halves(model: Any) -> Call:
    """A batch of two videos, each with a prompt of its own."""

    def call(x: torch.Tensor, t: torch.Tensor, texts: Any) -> list[torch.Tensor]:
        rows = torch.cat([x, x.flip(0)])
        return list(model(rows, t.expand(len(rows)), torch.cat(texts)).chunk(2))

    return call


ONE = [usual("prompt")] * 2


@pytest.mark.parametrize(
    ("guidance", "caller", "texts", "words"),
    [
        pytest.param(CALLS, in_calls, prompts(3), "makes 3", id="3 calls"),
        pytest.param(CALLS, in_calls, prompts(1), "distilled", id="one call"),
        pytest.param(CALLS, in_a_batch, prompts(), "one. Tune the plan for both", id="batch"),
        pytest.param(CALLS, in_calls, ONE, "not of one video", id="one prompt"),
        pytest.param(CALLS, of_two_videos, prompts(), "not of one video", id="two videos"),
        pytest.param(SECOND_HALF, in_calls, prompts(), "makes 2 calls", id="calls"),
        pytest.param(SECOND_HALF, in_a_batch, prompts(4), "are not the same", id="four prompts"),
        pytest.param(SECOND_HALF, in_a_batch, prompts(3), "are not the same", id="three prompts"),
        pytest.param(SECOND_HALF, in_a_batch, ONE, "are not the same", id="one prompt, batch"),
        pytest.param(SECOND_HALF, unlike_halves, prompts(), "are not the same", id="halves"),
    ],
)
def test_in_doubt_guidance_is_computed(
    dit: Small, tmp_path: Path, guidance: Any, caller: Any, texts: Any, words: str
) -> None:
    model = compiled(dit, tmp_path, guidance)
    actual = run(caller(model), texts)
    expected = run(caller(compiled(dit, tmp_path, guidance, {})), texts)
    torch.testing.assert_close(actual, expected)
    notes = pab_compile.stats(model).notes
    assert any(words in note for note in notes), notes


class MixesRows(Small):
    """Every row reads the mean of all rows."""

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0, keepdim=True)


class BreaksUp(Small):
    """Dynamo breaks it into several graphs."""

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
    ) -> torch.Tensor:
        found = super().forward(latents, timestep, prompt)
        torch._dynamo.graph_break()
        return found.tanh()


@pytest.mark.parametrize(
    ("kind", "words"),
    [(MixesRows, "in between: return x - x.mean"), (BreaksUp, "several graphs")],
    ids=str,
)
def test_a_batch_that_cannot_be_halved_is_computed(
    tmp_path: Path, kind: type[Small], words: str
) -> None:
    dit = small(kind=kind)
    model = compiled(dit, tmp_path, SECOND_HALF)
    actual = run(in_a_batch(model))
    expected = run(in_a_batch(compiled(dit, tmp_path, SECOND_HALF, {})))
    torch.testing.assert_close(actual, expected)
    notes = pab_compile.stats(model).notes
    assert any("cannot be computed alone" in note and words in note for note in notes), notes


@pytest.mark.parametrize(("guidance", "caller", "computes"), [FORMS[0], FORMS[3]])
def test_with_a_budget_guidance_is_computed(
    dit: Small, tmp_path: Path, guidance: Any, caller: Any, computes: int
) -> None:
    model = compiled(dit, tmp_path, guidance, cache_budget="1 GB")
    run(caller(model))
    assert any("with a budget" in note for note in pab_compile.stats(model).notes)


def test_calls_that_swap_at_a_step_are_computed_there(dit: Small, tmp_path: Path) -> None:
    model = compiled(dit, tmp_path, CALLS)
    counts: list[int] = []

    def call(x: torch.Tensor, t: torch.Tensor, texts: Any) -> list[torch.Tensor]:
        found = in_calls(model, len(counts) == 5)(x, t, texts)
        counts.append(pab_compile.stats(model).computed["output"])
        return found

    run(call)
    assert [b - a for a, b in zip([0, *counts], counts, strict=False)] == [2, 2, 1, 0, 2, 2, 0, 2]
    assert any("came first there" in note for note in pab_compile.stats(model).notes)


@pytest.mark.parametrize(("guidance", "caller", "computes"), [FORMS[0], FORMS[3]])
def test_a_first_guess_of_the_schedule_does_not_leave_guidance_to_be_computed(
    dit: Small, tmp_path: Path, guidance: Any, caller: Any, computes: int
) -> None:
    model = compiled(dit, tmp_path, guidance)

    def call(x: torch.Tensor, t: torch.Tensor, texts: Any) -> list[torch.Tensor]:
        return caller(model)(x, t.clone(), texts)  # a copy shows no table

    longer = [1000 - 50.0 * step for step in range(2 * STEPS)]
    actual = run(call, beside=longer)
    assert_same(actual, by_hand(dit, computes=computes)[0])
    assert pab_compile.stats(model).notes == ()
    assert pab_compile.stats(model).timeline.strips() == ["CC~pC~pC"]
