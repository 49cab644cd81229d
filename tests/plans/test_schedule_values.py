"""The published schedules give the numbers of computed steps that the reference rule gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import LatteTransformer3DModel

import pab_compile
from helpers.latte import Loop, calls_of, compiled_pab, ddim_timesteps, tiny_latte

# Open-Sora 1.2, 480x854, 51 frames, 30 steps of rectified flow.
OPEN_SORA = [
    *(1000, 992, 984, 976, 968, 960, 952, 940, 932, 920, 908, 892, 880, 864, 848),
    *(828, 808, 788, 764, 736, 708, 676, 636, 596, 548, 492, 426, 350, 258, 143),
]
LATTE_COMPUTED = {"spatial": 33, "temporal": 27, "cross": 22}
OPEN_SORA_COMPUTED = {"spatial": 21, "temporal": 17, "cross": 16}


pytestmark = pytest.mark.compiled_once


@pytest.fixture(scope="module")
def model() -> LatteTransformer3DModel:
    return tiny_latte(depth=1)


def run(
    model: Callable[..., Any], timesteps: torch.Tensor, by_value: bool = False
) -> pab_compile.RunStats:
    Loop(calls_of(model), timesteps, by_value=by_value).run()
    return pab_compile.stats(model)  # type: ignore[arg-type]


@pytest.mark.sample("False")
@pytest.mark.parametrize("by_value", [False, True])
def test_latte_with_50_ddim_steps(model: LatteTransformer3DModel, by_value: bool) -> None:
    timesteps = ddim_timesteps(50)
    assert timesteps.tolist() == list(range(980, -1, -20))
    stats = run(compiled_pab(model, ranges="latte"), timesteps, by_value)
    assert stats.steps == stats.calls == 50
    assert stats.computed_steps == stats.computed == LATTE_COMPUTED
    assert stats.reused == {kind: 50 - count for kind, count in LATTE_COMPUTED.items()}


@pytest.mark.sample("dtype0-True")
@pytest.mark.parametrize("by_value", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_open_sora_with_30_steps(
    model: LatteTransformer3DModel, dtype: torch.dtype, by_value: bool
) -> None:
    timesteps = torch.tensor(OPEN_SORA, dtype=dtype)
    stats = run(compiled_pab(model, ranges="open-sora"), timesteps, by_value)
    assert stats.steps == 30
    assert stats.computed_steps == stats.computed == OPEN_SORA_COMPUTED
    assert stats.kinds == ("spatial", "temporal", "cross")
    assert set(stats.patterns) == {"CCC", "---", "C--", "CC-", "C-C"}
    inside = [450 < t < 930 for t in OPEN_SORA]
    assert sum(inside) == 17
    assert all(p == "CCC" for p, i in zip(stats.patterns, inside, strict=True) if not i)


@pytest.mark.long
def test_both_bounds_of_a_window_in_timesteps_are_outside(model: LatteTransformer3DModel) -> None:
    timesteps = torch.tensor([900, 800, 700, 600, 500, 400, 300, 200, 100, 0])
    ranges = {"spatial": 100, "temporal": 1, "cross": 1}
    stats = run(compiled_pab(model, ranges=ranges, window=(200, 800)), timesteps)
    assert "".join(pattern[0] for pattern in stats.patterns) == "CC-----CCC"


@pytest.mark.long
def test_the_phase_counts_from_the_first_step(model: LatteTransformer3DModel) -> None:
    timesteps = torch.tensor([900, 800, 700, 600, 500, 400, 300, 200, 100, 0])
    ranges = {"spatial": 4, "temporal": 3, "cross": 1}
    stats = run(compiled_pab(model, ranges=ranges, window=(0, 850)), timesteps)
    assert "".join(pattern[0] for pattern in stats.patterns) == "C---C---CC"
    assert "".join(pattern[1] for pattern in stats.patterns) == "C--C--C--C"


@pytest.mark.long
def test_a_window_in_fractions_is_half_open(model: LatteTransformer3DModel) -> None:
    ranges = {"spatial": 100, "temporal": 1, "cross": 1}
    stats = run(compiled_pab(model, ranges=ranges, window=(0.2, 0.8)), ddim_timesteps(10))
    assert "".join(pattern[0] for pattern in stats.patterns) == "CC------CC"
