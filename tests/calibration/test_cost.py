"""Costs: FLOPs, bytes on the wire, and medians of measured steps."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import LatteTransformer3DModel

import pab_compile
from calibration.test_calibrate import FLOPS, observation_of, walks
from helpers.latte import (
    Guidance,
    Loop,
    calls_of,
    compiled_pab,
    ddim_timesteps,
    draw_latents,
    draw_prompt,
    tiny_latte,
)
from pab_compile import Cost, Observation, Schedule
from pab_compile.calibration.cost import _medians, flops_cost, measure_cost
from pab_compile.errors import CalibrationError
from pab_compile.runtime.stats import StepRecord
from pab_compile.traffic.wire_cost import wire_cost

pytestmark = pytest.mark.compiled_once
NUM_STEPS = 12
SITES = Counter({"spatial": 2, "mlp": 1})  # of observation_of


def test_the_speed_up_is_that_of_the_sum_over_all_steps() -> None:
    cost = Cost(10.0, 4.0)
    for count in range(1, NUM_STEPS + 1):
        spent = sum(10.0 if step < count else 4.0 for step in range(NUM_STEPS))
        assert cost.speedup(count, NUM_STEPS) == pytest.approx(NUM_STEPS * 10.0 / spent)
    assert cost.spared == pytest.approx(0.6)


def test_a_step_that_reuses_spends_the_flops_outside_of_all_sites() -> None:
    assert flops_cost(observation_of(walks())) == Cost(500, 500 - sum(FLOPS), "FLOPs")


@pytest.mark.parametrize(
    "pair",
    [(1.0, 1.0), (1.0, 2.0), (0.0, 0.0), (1.0, -1.0), (float("nan"), 0.0), (float("inf"), 1.0)],
)
def test_where_reuse_spares_nothing_there_is_no_cost_to_choose_by(
    pair: tuple[float, float],
) -> None:
    with pytest.raises(CalibrationError, match=r"takes .* seconds and one that reuses"):
        Cost(*pair, "seconds")


def recorded(
    steps: list[tuple[float, list[tuple[dict[str, int], dict[str, int]]]]],
) -> list[StepRecord]:
    """Of steps: seconds until the next one, and what each of the calls computes and reuses."""
    records, time = [], 100.0
    for step, (seconds, calls) in enumerate(steps):
        for number, (computed, reused) in enumerate(calls):
            started = time + number * seconds / len(calls)
            records.append(StepRecord(step, Counter(computed), Counter(reused), started))
        time += seconds
    return records


def test_medians_are_of_whole_steps_without_the_first_and_the_last() -> None:
    computes, reuses = (dict(SITES), {}), ({}, dict(SITES))
    some = ({"mlp": 1}, {"spatial": 2})
    steps = [
        (60.0, [computes] * 2),  # compiles
        (7.0, [computes] * 2),
        (1.0, [reuses] * 2),
        (8.0, [computes] * 2),
        (30.0, [computes] * 2),  # disturbed
        (2.0, [reuses] * 2),
        (5.0, [some, reuses]),  # neither the one nor the other
        (5.0, [computes, reuses]),
        (9.0, [reuses] * 2),
        (0.5, [reuses] * 2),
    ]
    assert _medians(recorded(steps), observation_of(walks())) == Cost(8.0, 2.0, "seconds", 3, 3)
    mlps_compute = [(1.0, [({}, {"spatial": 2})]) for _ in range(3)]
    with pytest.raises(
        CalibrationError, match=r"1 computed all and 0 reused all of the 3 observed"
    ):
        _medians(recorded([*steps[:2], *mlps_compute]), observation_of(walks()))


@pytest.fixture(scope="module")
def model() -> LatteTransformer3DModel:
    return tiny_latte(depth=1)


class Pieces:
    """An inner compiler that counts the ops of what runs: time, to be exact."""

    ops = 0

    def __call__(self, graph_module: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        def piece(*args: torch.Tensor) -> Any:
            self.ops += len(graph_module.graph.nodes)
            return graph_module(*args)

        return piece

    def perf_counter(self) -> float:
        """Seconds: one per op."""
        return float(self.ops)


PIECES = Pieces()


@pytest.fixture(autouse=True)
def _exact_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pab_compile.calibration.stopwatch.time", PIECES)


@pytest.fixture
def seen(model: LatteTransformer3DModel) -> Observation:
    compiled = compiled_pab(model, ranges="linear3", inner=PIECES)
    return pab_compile.observe(Loop(calls_of(compiled), ddim_timesteps(4)).run)


@pytest.mark.parametrize("guidance", ["none", "two calls"])
def test_a_generation_is_measured(
    model: LatteTransformer3DModel, seen: Observation, guidance: Guidance
) -> None:
    compiled: Any = compiled_pab(model, ranges="linear3", inner=PIECES)
    loop = Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS), guidance=guidance)
    found = measure_cost(loop.run, seen, compiled)
    again = Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS), guidance=guidance)
    ops = [PIECES.ops for _ in again.steps()]
    took = [after - before for before, after in itertools.pairwise(ops)]  # from step 1 on
    assert took[1] < took[0] / 2
    # Steps 1 3 6 9, and the others up to 10.
    assert found == Cost(took[0], took[1], "seconds", 4, 6)
    plan = pab_compile.tune(seen, speedup=1.5, cost=found)
    assert plan.to_json()["predicted"]["unit"] == "seconds"


@pytest.mark.long
def test_what_cannot_be_measured_is_an_error_that_says_what_ran(
    model: LatteTransformer3DModel, seen: Observation
) -> None:
    compiled: Any = compiled_pab(model, inner=PIECES)  # MLPs compute at every step
    loop = Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS))
    with pytest.raises(CalibrationError, match=r"and 0 reused all of the 5 observed sites"):
        measure_cost(loop.run, seen, compiled)
    compiled = compiled_pab(model, ranges="linear3", inner=PIECES)
    Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS)).run()
    with pytest.raises(CalibrationError, match="0 computed all and 0 reused all"):
        measure_cost(lambda: None, seen, compiled)  # what ran before does not count


def test_the_host_waits_for_the_device_only_while_steps_are_measured(
    model: LatteTransformer3DModel, seen: Observation, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[None] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: waits.append(None))
    compiled: Any = compiled_pab(model, ranges="linear3", inner=PIECES)

    def run() -> None:
        Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS)).run()

    run()
    assert not waits
    measure_cost(run, seen, compiled)
    assert len(waits) == NUM_STEPS
    run()
    assert len(waits) == NUM_STEPS


# Sequence parallelism.

M = 2 * 4 * 16 * 16 * 4
"""Bytes of the tokens of the tiny Latte: two rows, four frames, 16 places, 16 channels, float32."""


def report(num_ranks: int) -> pab_compile.CommReport:
    return pab_compile.comm(
        tiny_latte(depth=1),
        hidden_states=draw_latents(batch=2),
        timestep=torch.tensor([500, 500]),
        encoder_hidden_states=draw_prompt(batch=2),
        num_ranks=num_ranks,
        schedule=Schedule(NUM_STEPS),
        options={"ranges": "linear3"},
    )


def test_a_step_that_reuses_sends_what_is_gathered_at_its_end() -> None:
    found = wire_cost(report(2))
    # A temporal site, there and back; of a rank's half, half goes to the other rank. The end
    # gathers the frames of the output, four pixels of four channels per token.
    output = 2 * 4 * 4 * 8 * 8 * 4
    assert found == Cost(2 * M / 4 + output / 2, output / 2, "bytes on the wire")
    fewer = pab_compile.tune(observation_of(walks()), speedup=1.25, cost=found)
    assert fewer.speedup >= 1.25 and fewer.cost is found
    with pytest.raises(CalibrationError, match=r"50% of the bytes on the wire"):
        pab_compile.tune(observation_of(walks()), speedup=2.5, cost=found)


@pytest.mark.long
def test_one_rank_has_no_bytes_to_choose_by() -> None:
    with pytest.raises(CalibrationError, match="takes 0 bytes on the wire"):
        wire_cost(report(1))
