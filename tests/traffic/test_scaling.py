"""Times on any number of devices are predicted from the graph."""

from __future__ import annotations

import pytest
import torch

import pab_compile
from helpers.latte import draw_latents, draw_prompt, tiny_latte
from pab_compile import Link, Machine, Scaling, Schedule

STEPS, OPTIONS = 10, {"ranges": {"spatial": 2, "temporal": 5}, "window": (0.0, 1.0)}
FREE = Link(0.0, float("inf"))


def predicted(machine: Machine | float, ranks: tuple[int, ...] = (1, 2, 4)) -> Scaling:
    return pab_compile.scaling(
        tiny_latte(depth=1),
        hidden_states=draw_latents(batch=2),
        timestep=torch.tensor([500, 500]),
        encoder_hidden_states=draw_prompt(batch=2),
        schedule=Schedule(STEPS, tuple(900.0 - 100 * step for step in range(STEPS))),
        machine=machine,
        ranks=ranks,
        options=OPTIONS,
    )


def test_with_free_links_devices_divide_the_work() -> None:
    found = predicted(Machine(1e6, FREE, FREE))
    assert found[1].always == found.alone
    for num_ranks in (2, 4):
        always = found[num_ranks].always
        assert always is not None and always.exchange == 0
        assert found.alone.seconds / num_ranks <= always.seconds < found.alone.seconds


def test_uneven_parts_are_as_slow_as_the_longest() -> None:
    found = predicted(Machine(1e6, FREE, FREE), ranks=(2, 3))
    assert found[2].always == found[3].always  # of four frames one rank computes two


def test_a_measured_time_of_one_device_gives_its_rate() -> None:
    assert predicted(3.0).alone.seconds == pytest.approx(3.0)


def test_collectives_cost_latency_and_bytes_over_the_slower_link() -> None:
    report = pab_compile.comm(
        tiny_latte(depth=1),
        hidden_states=draw_latents(batch=2),
        timestep=torch.tensor([500, 500]),
        encoder_hidden_states=draw_prompt(batch=2),
        num_ranks=4,
        schedule=Schedule(STEPS, tuple(900.0 - 100 * step for step in range(STEPS))),
        options=OPTIONS,
    )
    sent, num = report.wire_bytes, report.num_collectives
    inside = Machine(1e6, Link(1e-3, 1e6), FREE, node_size=4)
    found = predicted(inside)[4].planned
    assert found is not None and found.exchange == pytest.approx(num * 1e-3 + sent / 1e6)
    # Two per node: one of three neighbours is near, two are far.
    across = Machine(1e6, Link(0.0, 1e6), Link(2e-3, 1e5), node_size=2)
    found = predicted(across)[4].planned
    assert found is not None and found.exchange == pytest.approx(num * 2e-3 + sent * 2 / 3 / 1e5)


def test_reuse_saves_computation_and_exchange() -> None:
    row = predicted(Machine(1e6, Link(1e-3, 1e6)))[4]
    assert row.always is not None and row.planned is not None
    assert row.planned.compute < row.always.compute
    assert row.planned.exchange < row.always.exchange


def test_a_number_of_devices_that_cannot_share_the_tokens_is_said_so() -> None:
    found = predicted(1.0, ranks=(1, 40))
    assert found[40].always is None and "fewer than the 40 ranks" in found[40].reason
    assert "fewer than the 40 ranks" in str(found)


def test_a_call_takes_its_least_time_on_any_number_of_devices() -> None:
    found = predicted(Machine(1e12, FREE, FREE, call_seconds=0.5))
    assert found.alone.seconds == STEPS * 0.5
