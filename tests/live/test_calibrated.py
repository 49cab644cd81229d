"""A model with a handle can be observed, and takes the plan that was calibrated for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import pab_compile
from helpers.latte import Loop, calls_of, ddim_timesteps, tiny_latte
from helpers.switching import Compilations
from pab_compile.errors import OptionError

TIMESTEPS = ddim_timesteps(12)


def run(model: Any) -> torch.Tensor:
    return Loop(calls_of(model), TIMESTEPS).run()


def test_a_calibration_runs_in_the_form_of_the_levels(tmp_path: Path, monkeypatch: Any) -> None:
    model = tiny_latte(depth=1)
    eager = run(model)
    handle = pab_compile.enable(model, "fast", inner="eager")
    run(model)
    seen = pab_compile.observe(lambda: run(model))
    assert torch.equal(run(model), run(model))
    found = pab_compile.tune(seen, speedup=1.5)
    path = tmp_path / "plan.json"
    found.save(path)
    compilations = Compilations(monkeypatch)
    results = []
    for plan in (found, path):
        handle.set(plan)
        results.append(run(model))
    assert compilations.count == 0
    assert handle.stats()["model"].computed_steps["spatial"] == found.entries.count(-1)
    assert torch.equal(*results)
    assert not torch.equal(results[0], eager)
    handle.disable()
    other = pab_compile.enable(model, "fast", inner="eager", cut="gated")
    for plan in (found, path):
        with pytest.raises(OptionError, match=r"cut='gated', but the plan .*was made with"):
            other.set(plan)
