"""Autocast around the calls, alone or together with regions inside of the forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pab_compile
from foreign.base import RANGES, Foreign, as_oracle
from foreign.test_foreign import NUM_STEPS, build, inputs_of
from helpers.latte import assert_different, assert_same
from pab_compile.compile.background import wait_for_background

EAGER = {"inner": "eager"}


class Switched(Foreign):
    """Queries and the MLP are computed in float32, everything else in bfloat16."""

    def mlp(self, number: int, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().mlp(number, x.float())

    def embed(self, timestep: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().embed(timestep)


@pytest.mark.parametrize("ranges", [{}, RANGES])
def test_both_together_cast_as_eager_does(ranges: dict[str, int]) -> None:
    model = build(Switched)
    options = {"ranges": ranges, "window": (0.0, 1.0), "inner": "eager"}
    compiled: Any = torch.compile(model, backend="pab", fullgraph=True, options=options)
    for step in range(NUM_STEPS if ranges else 1):
        inputs = inputs_of(model, step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            plain = model(**inputs)
            with as_oracle(model, step):
                expected = model(**inputs)
            with pab_compile.step(step, NUM_STEPS):
                actual = compiled(**inputs)
        assert actual.dtype == plain.dtype
        if not ranges:
            assert torch.equal(actual, plain)
            assert_different(plain, model(**inputs))
        else:
            assert_same(actual, expected, tolerance=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [EAGER, {}, {"warm": "background"}])
def test_around_the_calls_it_casts_as_in_the_inner_compiler(
    dtype: torch.dtype, options: dict[str, str]
) -> None:
    """Each thread has its own autocast, also the one that compiles in the background."""
    model = build(Foreign, dtype)
    compiled: Any = torch.compile(model, backend="pab", options={"ranges": {}, **options})
    stock: Any = torch.compile(model, backend=options.get("inner", "inductor"))
    inputs = inputs_of(model, 0, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compiled(**inputs)
        wait_for_background()
        actual, expected = compiled(**inputs), stock(**inputs)
    assert actual.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(actual, expected)
