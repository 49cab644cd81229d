"""Calibration: it predicts what the outputs say, and its plans are worth what they say."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

import pab_compile
from pab_compile.calibration.calibrate import predicted_error
from pab_compile.calibration.observation import MAX_LAG, Observation, ObservedRun, ObservedSite
from pab_compile.errors import CalibrationError, OptionError
from pab_compile.options import parse_options
from pab_compile.plans.plan import COMPUTE
from pab_compile.plans.plan_file import Calibrated, load_plan
from pab_compile.tuning.tune import tune

NUM_STEPS = 12
FLOPS = (100, 300, 50)


def walks(seed: int = 0) -> torch.Tensor:
    """Outputs that change smoothly, faster at both ends: ``[runs, sites, steps, elements]``."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, len(FLOPS), 1, 64)
    a, b, c = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    t = torch.linspace(-1, 1, NUM_STEPS, dtype=torch.float64).view(-1, 1)
    return 3 * a + t * b + torch.exp(3 * t.abs()) / 20 * c


def observation_of(outputs: torch.Tensor, cut: str = "attention") -> Observation:
    """Of sites with these outputs; the model's is their sum."""
    runs, _, steps, _ = outputs.shape
    products = torch.full((*outputs.shape[:3], MAX_LAG + 1), math.nan, dtype=torch.float64)
    for lag in range(steps):
        mean = (outputs[:, :, lag:] * outputs[:, :, : steps - lag]).mean(-1)
        products[:, :, lag:, lag] = mean
    kinds = ("spatial", "spatial", "mlp")
    sites = [
        ObservedSite(f"site{i}", kind, f"site{i}", 10 * (i + 1), flops)
        for i, (kind, flops) in enumerate(zip(kinds, FLOPS, strict=True))
    ]
    timesteps = tuple(1000.0 - 40 * step - step * step for step in range(steps))
    lanes = tuple(ObservedRun(run, "0") for run in range(runs))
    results = outputs.sum(1)
    between = (results[:, :, None] * results[:, None]).mean(-1)
    return Observation(
        tuple(sites),
        lanes,
        timesteps,
        cut,
        False,
        60,
        500,
        64,
        products,
        (between + between.mT) / 2,
    )


@pytest.mark.parametrize("predict_in", ["step", "timestep"])
def test_the_chosen_plan_is_worth_what_it_says(predict_in: Any) -> None:
    observation = observation_of(walks())
    found = tune(observation, speedup=2.0, predict_in=predict_in)
    assert found.error == pytest.approx(predicted_error(observation, found.entries, predict_in))
    spent = NUM_STEPS * 50 + sum(FLOPS) * found.entries.count(COMPUTE)
    assert found.speedup == pytest.approx(NUM_STEPS * 500 / spent)
    assert found.speedup >= 2.0
    assert found.num_steps == NUM_STEPS
    assert found.cache_bytes == 60 * (max(found.entries) + 1)


def test_positions_change_what_is_predicted() -> None:
    observation = observation_of(walks())
    row = (COMPUTE, COMPUTE, 1, 1, 1, COMPUTE, 1, 1, 1, COMPUTE, 1, 1)
    errors = [predicted_error(observation, row, way) for way in ("step", "timestep")]
    assert errors[0] != pytest.approx(errors[1], rel=1e-3)


def test_more_speed_costs_more_error_and_the_other_way_round() -> None:
    observation = observation_of(walks())
    errors = [tune(observation, speedup=s).error for s in (1.0, 2.0, 3.0)]
    assert errors == sorted(errors)
    assert errors[0] == 0.0
    for error in errors[1:]:
        assert tune(observation, max_error=error).error <= error
    fast = tune(observation, max_error=errors[-1])
    assert fast.speedup >= 3.0


def test_memory_limits_the_order() -> None:
    observation = observation_of(walks())
    free = tune(observation, speedup=2.0)
    assert free.cache_bytes > 60
    tight = tune(observation, speedup=2.0, max_cache_bytes=60)
    assert tight.cache_bytes == 60
    assert set(tight.entries) == {COMPUTE, 0}
    assert tight.error > free.error
    none = tune(observation, max_error=1.0, max_cache_bytes=59)
    assert (none.cache_bytes, none.speedup) == (0, 1.0)
    with pytest.raises(CalibrationError, match=r"speed-up within them is 1\.00x"):
        tune(observation, speedup=2.0, max_cache_bytes=59)


def test_what_cannot_be_had_is_an_error_that_says_what_can() -> None:
    observation = dataclasses.replace(observation_of(walks()), total_flops=1000)
    with pytest.raises(CalibrationError, match=r"speed-up within them is 1\.\d\dx: .* 45%"):
        tune(observation, speedup=4.0)
    with pytest.raises(CalibrationError, match="either speedup or max_error"):
        tune(observation)
    with pytest.raises(CalibrationError, match="either speedup or max_error"):
        tune(observation, speedup=2.0, max_error=0.1)
    for row in ([COMPUTE], [0] * NUM_STEPS):
        with pytest.raises(CalibrationError, match="one entry for each of the 12 observed steps"):
            predicted_error(observation, row)
    unknown = dataclasses.replace(observation, timesteps=(None,) * NUM_STEPS)
    with pytest.raises(CalibrationError, match="a known and distinct timestep for every step"):
        tune(unknown, speedup=1.5, predict_in="timestep")


def test_the_plan_file_reads_back(tmp_path: Any) -> None:
    found = tune(observation_of(walks(), "gated"), speedup=2.0)
    found.save(tmp_path / "plan.json")
    plan = load_plan(tmp_path / "plan.json")
    assert plan.entries == dict.fromkeys(("site0", "site1", "site2"), found.entries)
    assert plan.calibrated == Calibrated(found.fingerprint, "gated", False, "step")
    assert len((tmp_path / "plan.json").read_text().splitlines()) < 20


def test_a_plan_brings_the_options_that_it_was_made_for(tmp_path: Any) -> None:
    observation = dataclasses.replace(observation_of(walks(), "gated"), coalesce=True)
    tune(observation, speedup=2.0).save(tmp_path / "plan.json")
    options = parse_options({"plan": tmp_path / "plan.json"})
    assert (options.cut, options.coalesce, options.predict_in) == ("gated", True, "step")
    parse_options({"plan": tmp_path / "plan.json", "coalesce": True, "cut": "gated"})
    for name, value in (("coalesce", False), ("cut", "attention"), ("predict_in", "timestep")):
        with pytest.raises(OptionError, match=f"{name}={value!r}, but the plan"):
            parse_options({"plan": tmp_path / "plan.json", name: value})


def test_what_was_not_observed_is_never_reused() -> None:
    observation = observation_of(walks())
    observation.products[0, 1, 5] = math.nan  # a lane without this step
    found = tune(observation, max_error=1e9, max_distance=2)
    assert found.entries[5] == COMPUTE
    assert math.isinf(predicted_error(observation, [COMPUTE] * 5 + [0] * 7))
    with pytest.raises(CalibrationError, match="all of them were observed"):
        tune(observation, speedup=2.5, max_distance=2)


def test_the_old_name_says_the_new_one() -> None:
    observation = observation_of(walks())
    with pytest.warns(DeprecationWarning, match=r"is called pab_compile\.tune\(observation"):
        old = pab_compile.calibrate(observation, speedup=2.0)
    assert old == tune(observation, speedup=2.0)
