"""Calibration: it predicts what the outputs say, and its plans are worth what they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from pab_compile.calibrate import CalibrationError, calibrate, predicted_error
from pab_compile.observation import MAX_LAG, Observation, ObservedRun, ObservedSite, lagrange
from pab_compile.plan import COMPUTE
from pab_compile.plan_file import plan_from_json

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
    return Observation(tuple(sites), lanes, timesteps, cut, 64, products)


def error_of(
    outputs: torch.Tensor, rows: dict[str, Sequence[int]], at: Sequence[float], gated: bool = False
) -> float:
    """What reusing along the rows does to recorded outputs."""
    total = 0.0
    norms = outputs.square().mean(-1)
    norms = norms.mean(1, keepdim=True).expand_as(norms) if gated else norms
    for index in range(outputs.shape[1]):
        computed: list[int] = []
        for step, entry in enumerate(rows.get(f"site{index}", ())):
            if entry == COMPUTE:
                computed.insert(0, step)
                continue
            sources = computed[: entry + 1]
            weights = lagrange([at[s] for s in sources], at[step])
            guess = sum(w * outputs[:, index, s] for s, w in zip(sources, weights, strict=True))
            missed = (outputs[:, index, step] - guess).square().mean(-1)
            total += (missed / norms[:, index, step]).mean().item() / outputs.shape[1]
    return math.sqrt(total / outputs.shape[2])


@pytest.mark.parametrize("predict_in", ["step", "timestep"])
@pytest.mark.parametrize("cut", ["attention", "gated"])
def test_the_predicted_error_is_that_of_the_outputs(cut: str, predict_in: Any) -> None:
    outputs = walks()
    observation = observation_of(outputs, cut)
    rows = {
        "site0": (COMPUTE, 0, COMPUTE, 1, 1, COMPUTE, 2, 2, 0, COMPUTE, COMPUTE, 2),
        "site2": (COMPUTE, COMPUTE, COMPUTE, 2, 2, 2, 2, COMPUTE, 1, 1, 0, 0),
    }
    at = list(range(NUM_STEPS)) if predict_in == "step" else list(observation.timesteps)
    expected = error_of(outputs, rows, at, cut == "gated")  # type: ignore[arg-type]
    assert predicted_error(observation, rows, predict_in) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("align", ["model", "kind"])
def test_the_chosen_plan_is_worth_what_it_says(align: Any) -> None:
    outputs = walks()
    found = calibrate(observation_of(outputs), speedup=2.0, total_flops=500, align=align)
    assert found.error == pytest.approx(error_of(outputs, found.rows, range(NUM_STEPS)), rel=1e-6)
    computed = {name: list(row).count(COMPUTE) for name, row in found.rows.items()}
    spent = NUM_STEPS * 50 + sum(flops * computed[f"site{i}"] for i, flops in enumerate(FLOPS))
    assert found.speedup == pytest.approx(NUM_STEPS * 500 / spent)
    assert found.speedup >= 2.0
    if align == "model":
        assert len({tuple(row) for row in found.rows.values()}) == 1


def test_more_speed_costs_more_error_and_the_other_way_round() -> None:
    observation = observation_of(walks())
    errors = [calibrate(observation, speedup=s).error for s in (1.0, 1.5, 2.0, 3.0)]
    assert errors == sorted(errors)
    assert errors[0] == 0.0
    for error in errors[1:]:
        assert calibrate(observation, max_error=error).error <= error
    fast = calibrate(observation, max_error=errors[-1])
    assert fast.speedup >= 3.0


def test_memory_limits_the_order() -> None:
    observation = observation_of(walks())
    free = calibrate(observation, speedup=2.0)
    assert free.cache_bytes > 60
    tight = calibrate(observation, speedup=2.0, max_cache_bytes=60)
    assert tight.cache_bytes == 60
    assert {entry for row in tight.rows.values() for entry in row} == {COMPUTE, 0}
    assert tight.error > free.error


def test_what_cannot_be_had_is_an_error_that_says_what_can() -> None:
    observation = observation_of(walks())
    with pytest.raises(CalibrationError, match=r"fastest within them saves to 1\.\d\dx .* 45%"):
        calibrate(observation, speedup=4.0, total_flops=1000)
    with pytest.raises(CalibrationError, match="either speedup or max_error"):
        calibrate(observation)
    with pytest.raises(CalibrationError, match="either speedup or max_error"):
        calibrate(observation, speedup=2.0, max_error=0.1)


def test_the_plan_file_reads_back(tmp_path: Any) -> None:
    found = calibrate(observation_of(walks()), speedup=2.0)
    found.save(tmp_path / "plan.json")
    plan = plan_from_json(found.to_json(), "p")
    assert plan.rows == {name: tuple(row) for name, row in found.rows.items()}
    assert plan.calibrated is not None
    assert plan.calibrated.fingerprint == found.fingerprint


def test_what_was_not_observed_is_never_reused() -> None:
    outputs = walks()
    observation = observation_of(outputs)
    observation.products[0, 1, 5] = math.nan  # a lane without this step
    found = calibrate(observation, max_error=math.inf, max_distance=2)
    for row in found.rows.values():
        assert row[5] == COMPUTE
    assert math.isinf(predicted_error(observation, {"site1": [COMPUTE] * 5 + [0] * 7}))
