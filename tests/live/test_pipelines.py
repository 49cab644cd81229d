"""``enable`` on real pipelines of diffusers with tiny transformers: one, and two."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pab_compile
from dits.build import build
from helpers.switching import Compilations
from pipelines.catalogue import CASES

NUM_STEPS = 20


def test_both_transformers_of_a_pipeline_have_one_plan(monkeypatch: Any, runs_all: bool) -> None:
    case = CASES["Wan"]
    second = build(case.dit, seed=1)
    pipe = case.build(transformer_2=second, boundary_ratio=0.7)
    first = pipe.transformer
    eager = case.generate(pipe, NUM_STEPS)
    before = [dict(vars(module)) for module in (first, second)]
    compilations = Compilations(monkeypatch)
    handle = pab_compile.enable(pipe, "balanced", inner="eager")
    assert handle.modules == ("transformer", "transformer_2")
    found = {}
    with torch._dynamo.config.patch(error_on_recompile=True):
        for plan in ("balanced", "ultra", "off", {"ranges": {"full": 2, "cross": 3}}):
            handle.set(plan)
            found[handle.plan] = case.generate(pipe, NUM_STEPS)
            if plan in ("balanced", "ultra"):
                stats = handle.stats()
                assert sum(each.steps for each in stats.values()) == NUM_STEPS
                assert all(each.computed_steps["full"] < each.steps for each in stats.values())
    assert torch.equal(found["off"], eager)
    assert compilations.count == 2  # a form for lines, and one for plans by kind
    assert len({result.double().sum().item() for result in found.values()}) == 4
    handle.disable()
    assert (pipe.transformer, pipe.transformer_2) == (first, second)
    for module, own in zip((first, second), before, strict=True):
        assert [name for name, value in vars(module).items() if value is not own.get(name)] == []
        assert vars(module).keys() == own.keys()
    assert torch.equal(case.generate(pipe, NUM_STEPS), eager)
    if runs_all:
        torch._dynamo.reset()
        given = {"inner": "eager", "ranges": "linear5"}
        pipe.transformer = torch.compile(first, backend="pab", options=given)
        pipe.transformer_2 = torch.compile(second, backend="pab", options=given)
        assert torch.equal(case.generate(pipe, NUM_STEPS), found["ultra"])


@pytest.mark.long
def test_a_pipeline_that_computes_its_timesteps() -> None:
    case = CASES["Flux"]
    pipe = case.build()
    eager = case.generate(pipe, NUM_STEPS)
    handle = pab_compile.enable(pipe, inner="eager")
    reused = case.generate(pipe, NUM_STEPS)
    stats = handle.stats()["transformer"]
    assert stats.computed_steps["joint"] == 8
    assert stats.notes == ()
    assert not torch.equal(reused, eager)
    with handle.disabled():
        assert torch.equal(case.generate(pipe, NUM_STEPS), eager)
