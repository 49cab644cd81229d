"""The time that ``scaling`` predicts is that of processes whose links are slow."""

from __future__ import annotations

import pytest

import helpers.slowed as slowed
import pab_compile
from helpers.latte import ddim_timesteps
from helpers.world import World
from pab_compile import Machine, Schedule

pytestmark = [pytest.mark.xdist_group("ranks"), pytest.mark.long, pytest.mark.slow]


@pytest.mark.parametrize(
    ("num_ranks", "plan"), [(2, "without reuse"), (2, "with reuse"), (4, "without reuse")]
)
def test_processes_with_slow_links_take_the_time_that_was_foretold(
    world: World, num_ranks: int, plan: str
) -> None:
    measured = world.run(slowed.seconds, plan, ranks=num_ranks)
    alone, shared = (max(times) for times in zip(*measured, strict=True))
    timesteps = tuple(map(float, ddim_timesteps(slowed.NUM_STEPS)))
    about = {"schedule": Schedule(slowed.NUM_STEPS, timesteps), **slowed.inputs()}
    model = slowed.wide_latte()
    flops = pab_compile.comm(model, num_ranks=1, **about).work_always.flops  # type: ignore[arg-type]
    found = pab_compile.scaling(
        model,
        machine=Machine(flops / alone, slowed.LINK),
        ranks=(num_ranks,),
        options={"shard": "t", **slowed.PLANS[plan]},
        **about,  # type: ignore[arg-type]
    )[num_ranks].planned
    assert found is not None
    print(
        f"{num_ranks} ranks, {plan}: alone {alone:.2f} s, foretold {found}, measured {shared:.2f} s"
    )
    assert found.exchange > 0.2 * found.seconds  # else the links would not matter
    assert shared == pytest.approx(found.seconds, rel=0.15)
