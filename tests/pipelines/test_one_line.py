"""One line on a whole pipeline of diffusers gives what module hooks give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.latte import assert_different, assert_same

from .case import Case
from .catalogue import CASES
from .observe import NUM_STEPS, OPTIONS, Generation, by_steps, generate, row

DOCS = Path(__file__).parents[2] / "docs" / "pipelines.md"


def check(case: Case, found: Generation, eager: torch.Tensor) -> None:
    assert found.actual.isfinite().all()
    assert_different(found.expected, eager)
    assert_same(found.actual, found.expected)
    reused = {kind: number for kind, number in found.stats.reused.items() if number}
    assert reused == dict(found.oracle.reused)
    assert found.stats.calls == case.calls * NUM_STEPS
    assert found.stats.lanes == len(found.oracle.lanes) == case.calls
    learned = [f"{', '.join(map(repr, case.stepping))} changed from step to step"]
    assert [note.partition(". ")[0] for note in found.stats.notes] == learned[: bool(case.stepping)]


@pytest.mark.sample("Wan")
@pytest.mark.filterwarnings("ignore:In CPU autocast")  # a model asks for what CPUs do not have
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # a scheduler
@pytest.mark.parametrize(
    "case", [case for case in CASES.values() if case.in_suite], ids=lambda case: case.name
)
def test_one_line_gives_what_hooks_on_the_attention_modules_give(case: Case) -> None:
    eager = case.generate(case.build(), NUM_STEPS)
    pipe = case.build()  # a scheduler remembers the run before, where more may be read
    options = {**OPTIONS, **case.dit.options}
    pipe.transformer = torch.compile(pipe.transformer, backend="pab", options=options)
    first = generate(case, pipe, by_steps(case))
    check(case, first, eager)
    assert row(case, first) in DOCS.read_text(), row(case, first)
