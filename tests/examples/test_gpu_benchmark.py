"""The benchmark `gpu` runs to its end without a GPU, and keeps what it has if it is stopped."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks import gpu
from benchmarks.results import Result, make_markdown


def result_of(minutes: float) -> Result:
    result = Result("gpu", "python -m benchmarks gpu", {}, file_name="gpu")
    with Progress(console=Console(file=io.StringIO())) as progress:
        gpu.run(result, True, progress, inner="eager", minutes=minutes)
    return result


def test_every_plan_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "MODELS", {"Wan": gpu.WAN_SMALL})  # the others take the same way
    result = result_of(minutes=60)
    measured = {measure.name: measure.value for measure in result.measures}
    for real in gpu.MODELS.values():
        for plan in gpu.PLANS:
            assert measured[f"{real.name}: {plan}, speed / {gpu.STOCK}"] > 0
            # All timesteps lie in one table, whose values are read once.
            assert measured[f"{real.name}: {plan}, waits in the steps after it"] == 0
    text = make_markdown(result)
    assert ("NOT RUN ON A GPU" in text) == (not torch.cuda.is_available())
    assert "Not complete" not in text


def test_a_model_at_its_real_size_gets_the_inputs_that_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu, "_built", lambda real, _: real.build())  # without memory
    monkeypatch.setattr(gpu, "_random", lambda described, _: described)
    task = gpu._task("Wan", gpu.WAN_SMALL, False, 20, float("inf"))
    assert len(set(task.timesteps.tolist())) == 20
    given = {**task.inputs, "timestep": task.timesteps[:1].to("meta")}
    with torch.no_grad():
        prediction = task.model(**given, return_dict=False)[0]
    assert prediction.shape == given["hidden_states"].shape


def test_what_was_measured_is_kept_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    time = gpu._time
    monkeypatch.setattr(gpu, "_time", lambda *_: (2.0, 1.0))  # nothing runs, so nothing compiles
    profiled = []

    def over(*_: object) -> None:
        profiled.append(None)
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "_profile", over)
    result = result_of(minutes=60)
    assert len(profiled) == 1
    measured = {measure.name: measure.value for measure in result.measures}
    assert measured[f"Latte-1: balanced, speed / {gpu.EAGER}"] == 1
    assert not any("FLUX" in name for name in measured)
    assert any("Not complete (stopped by hand)" in note for note in result.notes)
    monkeypatch.setattr(gpu, "_time", time)
    late = result_of(minutes=0)
    assert not late.measures
    assert any("Not complete (0 minutes)" in note for note in late.notes)
