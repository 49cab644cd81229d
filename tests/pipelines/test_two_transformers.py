"""Wan 2.2: one transformer for the noisy steps and another one for the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import pab_compile
from dits.build import build
from helpers.latte import assert_different, assert_same

from .catalogue import CASES
from .observe import NUM_STEPS, OPTIONS, by_steps
from .oracle import Oracle

CASE = CASES["Wan"]
BOUNDARY = 0.7


def two_stages() -> Any:
    second = build(CASE.dit, seed=1)
    return CASE.build(transformer_2=second, boundary_ratio=BOUNDARY)


def by_hooks(seed: int) -> tuple[torch.Tensor, list[Oracle]]:
    pipe = two_stages()
    models = (pipe.transformer, pipe.transformer_2)
    oracles = [Oracle(model, CASE.dit, by_steps(CASE)) for model in models]
    ends: list[Callable[..., Any]] = [oracle.end_step for oracle in oracles]

    def end_step(*args: Any) -> Any:
        results = [end(*args) for end in ends]
        return results[0]

    return CASE.generate(pipe, NUM_STEPS, seed, callback_on_step_end=end_step), oracles


@pytest.mark.long
def test_each_transformer_counts_its_own_steps_and_shares_nothing() -> None:
    pipe = two_stages()
    eager = CASE.generate(pipe, NUM_STEPS)
    pipe.transformer = torch.compile(pipe.transformer, backend="pab", options=OPTIONS)
    pipe.transformer_2 = torch.compile(pipe.transformer_2, backend="pab", options=OPTIONS)
    for seed in (5, 6):
        actual = CASE.generate(pipe, NUM_STEPS, seed)
        expected, oracles = by_hooks(seed)
        assert_same(actual, expected)
        if seed == 5:
            assert_different(expected, eager)
        for model, oracle in zip((pipe.transformer, pipe.transformer_2), oracles, strict=True):
            stats = pab_compile.stats(model)
            assert 1 < stats.steps < NUM_STEPS
            assert {k: n for k, n in stats.reused.items() if n} == dict(oracle.reused)
            assert stats.lanes == 2
            assert stats.notes == ()
