"""Tune goes on where it was interrupted, and takes no file that is not its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pab_compile
from pab_compile.errors import CalibrationError
from pab_compile.tuning import work

NUM_STEPS = 8


class Bent(torch.nn.Module):
    """Its output depends on the latents, so a change of a step moves what follows."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.tanh(latents + timestep[0] / 500)


def tune(path: Path | None, model: Bent | None = None, first: int = 0, **options: Any) -> Any:
    model = model or Bent()

    def generate(seed: int, num_steps: int) -> torch.Tensor:
        x = torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(seed))
        for t in torch.linspace(1000, 1000 / num_steps, num_steps):
            x = x - model(x, t.expand(1)) / num_steps
        return x

    given = {"num_steps": NUM_STEPS, "computed": 4, "rounds": 1, "resume": path, **options}
    return pab_compile.tune(generate, range(first, first + 3), model=model, **given)


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a run that was broken off before the last fit."""

    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(work, "together", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            tune(tmp_path / "tune.json")
    return tmp_path / "tune.json"


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(interrupted: Path) -> None:
    expected, model = tune(None), Bent()
    tuned = tune(interrupted, model)
    for entry, wanted in zip(tuned.found.entries, expected.found.entries, strict=True):
        assert entry == pytest.approx(wanted)
    assert json.loads(interrupted.read_text())["rounds"] == 1
    again = Bent()
    assert tune(interrupted, again).found.entries == tuned.found.entries
    assert again.calls < model.calls, "the last fit is done"


def test_without_a_file_nothing_is_written(tmp_path: Path) -> None:
    tune(None, rounds=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda text: text[: len(text) // 2], "cut short or edited"),
        (lambda text: "[]", "cut short or edited"),
        (lambda text: text.replace("tune/1", "tune/9"), "its format is"),
        (lambda text: text.replace('"changes": [[', '"changes": [[NaN, '), "not all finite"),
        (lambda text: text.replace('"computed": [0', '"computed": [3'), "no steps that compute"),
        (
            lambda text: text.replace('"pairing": null', '"pairing": ["calls", "first"]'),
            "does not say",
        ),
        (lambda text: text.replace('"changes": [[', '"changes": [[1.0, '), "do not fit its steps"),
    ],
)
def test_a_file_that_was_cut_short_or_edited_is_refused(
    interrupted: Path, edit: Any, words: str
) -> None:
    broken = edit(interrupted.read_text())
    interrupted.write_text(broken)
    with pytest.raises(CalibrationError, match=words) as caught:
        tune(interrupted)
    assert "delete it to begin anew" in str(caught.value)
    assert interrupted.read_text() == broken, "nothing is lost"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"computed": 3}, "another request: computed was 4 and is 3"),
        ({"teacher": "converged"}, "another request: teacher"),
        ({"first": 5}, "other prompts, another model or other noise"),
    ],
    ids=str,
)
def test_a_file_of_another_request_is_refused(
    interrupted: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(CalibrationError, match=words):
        tune(interrupted, **options)


def test_a_schedule_that_changes_between_runs_is_refused() -> None:
    model, shift = Bent(), iter(range(1000))

    def generate(seed: int, num_steps: int) -> torch.Tensor:
        x = torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(seed))
        start = 1000.0 if next(shift) < 3 else 900.0
        for t in torch.linspace(start, 100, num_steps):
            x = x - model(x, t.expand(1)) / num_steps
        return x

    with pytest.raises(CalibrationError, match="the same schedule at every run"):
        pab_compile.tune(generate, range(3), model=model, num_steps=NUM_STEPS, computed=4)
