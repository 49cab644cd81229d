"""Models of diffusers on two ranks: equal to one process, and what ``comm`` foretells.

``python -m dits.ranks`` runs all of them.
"""

from __future__ import annotations

import pytest

from dits.in_types import TYPES
from helpers.rank_coverage import BOUNDS, PLANS, measure
from helpers.world import World

pytestmark = [pytest.mark.xdist_group("ranks"), pytest.mark.slow]
NAMES = ["cogview4", "latte", "ltx2", "hunyuan_video_15", "sana", "anyflow_far", "mochi"]


@pytest.mark.sample("linear3-float32-hunyuan_video_15")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("plan", PLANS)
def test_two_ranks_equal_one_process_and_exchange_what_was_foretold(
    world: World, plan: str, type_name: str, name: str
) -> None:
    shared = measure(world, name, type_name, [plan])[plan]
    assert not shared.refusal
    assert shared.difference < BOUNDS[type_name]
    assert shared.exchanged == shared.foretold
