"""A plan that was calibrated on a model runs on it: by a handle, and from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import pab_compile

from .build import Denoising, build
from .catalogue import CATALOGUE
from .spec import WHAT_MODELS_WARN_OF, Dit

NUM_STEPS = 10
pytestmark = WHAT_MODELS_WARN_OF
DITS = [pytest.param(dit, id=name) for name, dit in CATALOGUE.items() if not dit.unsupported]


@pytest.mark.sample("flux", "wan_animate")
@pytest.mark.parametrize("dit", DITS)
def test_a_calibrated_plan_fits_the_model_it_was_calibrated_on(dit: Dit, tmp_path: Path) -> None:
    model, loop = build(dit), Denoising(dit, NUM_STEPS)
    handle = pab_compile.enable(model, "quality", inner="eager", dynamic=False, **dit.options)

    def run() -> torch.Tensor:
        with dit.switched():
            return loop.predictions(model)

    run()
    found = pab_compile.tune(pab_compile.observe(run), speedup=1.4)
    found.save(tmp_path / "plan.json")
    results = []
    for plan in ("pab246", found, tmp_path / "plan.json"):
        handle.set(plan)
        results.append(run())
    assert torch.equal(results[1], results[2])
    assert _steps_that_compute(handle) == found.entries.count(-1)
    handle.disable()


def _steps_that_compute(handle: Any) -> int:
    (stats,) = handle.stats().values()
    return max(stats.computed_steps.values())
