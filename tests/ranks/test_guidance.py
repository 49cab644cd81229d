"""Ranks under a plan that leaves the second call of guidance out at some steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import helpers.guided_ranks as cases
from helpers.guided import STEPS
from helpers.latte import assert_different, assert_same
from helpers.world import World

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.mark.sample("tokens")
@pytest.mark.parametrize("how", ["tokens", "rows"])
def test_ranks_that_share_tokens_or_rows_leave_guidance_out_as_one_process_does(
    world: World, tmp_path: Path, how: str
) -> None:
    expected = cases.generate(None, tmp_path, how)
    for found in world.run(cases.generate, tmp_path, how, ranks=2):
        assert_same(found.predictions, expected.predictions)
        assert (found.computed, found.notes) == (expected.computed, ())


@pytest.mark.long
def test_halves_that_share_the_calls_compute_guidance_at_all_steps_and_say_so(
    world: World, tmp_path: Path
) -> None:
    expected = cases.generate(None, tmp_path, "calls", {})
    assert_different(cases.generate(None, tmp_path, "calls").predictions, expected.predictions)
    for found in world.run(cases.generate, tmp_path, "calls", ranks=2):
        assert torch.equal(found.predictions, expected.predictions)
        assert len(found.predictions) == STEPS
        assert any("two halves of the ranks share the calls" in note for note in found.notes)
