"""Drift: what a row does to the latents, from products of the outputs alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch

from calibration.test_calibrate import observation_of, walks
from pab_compile.calibration.drift import Drift, observed_drift, step_sizes
from pab_compile.calibration.observation import lagrange
from pab_compile.plans.plan import COMPUTE

NUM_STEPS = 12
ROWS = [
    (COMPUTE, 0, COMPUTE, 1, 1, COMPUTE, 2, 2, 0, COMPUTE, COMPUTE, 2),
    (COMPUTE, COMPUTE, COMPUTE, 2, 2, 2, 2, COMPUTE, 1, 1, 0, 0),
    (COMPUTE, 2, 2, COMPUTE, 2, 2, COMPUTE, 2, 2, COMPUTE, 2, 2),  # too few for a parabola at first
    (COMPUTE,) * NUM_STEPS,
]


def simulated(
    outputs: torch.Tensor, row: Sequence[int], sizes: Sequence[float], at: Sequence[float]
) -> float:
    """Both trajectories, step by step: ``outputs`` is ``[steps, elements]``."""
    plain = reused = torch.zeros_like(outputs[0])
    computed: list[int] = []
    total = 0.0
    for step, entry in enumerate(row):
        sources = computed[: entry + 1] if entry != COMPUTE else []
        if entry == COMPUTE:
            computed.insert(0, step)
            output = outputs[step]
        else:
            weights = lagrange([at[s] for s in sources], at[step])
            output = sum(w * outputs[s] for w, s in zip(weights, sources, strict=True))
        plain = plain + sizes[step] * outputs[step]
        reused = reused + sizes[step] * output
        total += float((reused - plain).square().sum())
    return total / len(row) / float(plain.square().sum())


@pytest.mark.parametrize("at", [range(NUM_STEPS), [float(s * s) for s in range(NUM_STEPS)]])
def test_the_drift_is_that_of_the_two_trajectories(at: Sequence[float]) -> None:
    outputs = walks()[0].sum(0)
    sizes = [1.0 + 0.3 * step for step in range(NUM_STEPS)]
    found = Drift(outputs @ outputs.T, sizes, at)(torch.tensor(ROWS))
    expected = [simulated(outputs, row, sizes, at) for row in ROWS]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    assert found[-1] == 0


def test_errors_that_cancel_count_less_than_errors_that_add_up() -> None:
    """The same sizes of errors, with signs that alternate or not."""
    alternating = torch.tensor([1.0, 1.0, 2.0, 1.0, 0.0] * 2, dtype=torch.float64)
    rising = torch.tensor([1.0, 1.0, 2.0, 1.0, 2.0] * 2, dtype=torch.float64)
    row = torch.tensor([[COMPUTE, COMPUTE, 0, COMPUTE, 0] * 2])
    base = torch.eye(2, dtype=torch.float64)[0]

    def drift(values: torch.Tensor) -> float:
        outputs = torch.stack([values - 1, torch.ones_like(values)], 1) + 0 * base
        return float(Drift(outputs @ outputs.T, [1.0] * 10, range(10))(row))

    assert drift(alternating) < drift(rising) / 2


def test_what_is_not_known_or_lies_too_far_is_infinite() -> None:
    outputs = walks()[0].sum(0)
    products = outputs @ outputs.T
    products[5] = products[:, 5] = math.nan
    rows = [
        [COMPUTE] * 4 + [0, COMPUTE, 0] + [COMPUTE] * 5,  # 5 predicts 6
        [COMPUTE] * 5 + [0] + [COMPUTE] * 6,  # 5 is predicted
        [COMPUTE] * 6 + [COMPUTE, 0] + [COMPUTE] * 4,  # 6 predicts 7
        [COMPUTE] * 6 + [COMPUTE, 1] + [COMPUTE] * 4,  # and so does 5
        [COMPUTE] * 8 + [0, 0, 0, COMPUTE],
    ]
    found = Drift(products, [1.0] * 12, range(12), max_distance=2)(torch.tensor(rows))
    assert found.isinf().tolist() == [True, True, False, True, True]


def test_a_step_at_which_a_site_did_not_run_is_not_known() -> None:
    observation = observation_of(walks())
    row = torch.tensor([[COMPUTE] * 5 + [0] * 3 + [COMPUTE] * 4])
    assert observed_drift(observation, range(12))(row).isfinite()
    observation.products[1, 2, 6] = math.nan
    assert observed_drift(observation, range(12))(row).isinf()


@pytest.mark.parametrize(
    ("timesteps", "expected"),
    [
        ((900.0, 700.0, 200.0), [200.0, 500.0, 200.0]),
        ((0.0, 0.3, 0.9), [0.3, 0.6, 0.6]),
        ((9.0, None, 3.0), [1.0] * 3),
        ((9.0, 3.0, 3.0), [1.0] * 3),
        ((9.0,), [1.0]),
    ],
)
def test_the_sampler_goes_from_timestep_to_timestep(
    timesteps: tuple[float | None, ...], expected: list[float]
) -> None:
    observation = dataclasses.replace(observation_of(walks()), timesteps=timesteps)
    assert step_sizes(observation) == pytest.approx(expected)
