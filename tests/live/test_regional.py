"""Regional compilation: models some of whose blocks were compiled before, by diffusers or torch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from accelerate.utils import compile_regions
from diffusers import LatteTransformer3DModel

import pab_compile
from helpers.latte import Loop, assert_same, calls_of, compiled_pab, ddim_timesteps, tiny_latte
from helpers.oracle import Oracle
from helpers.pairs import NUM_STEPS, RULE
from pab_compile import UnsupportedModelError

OPTIONS = {"ranges": RULE.ranges, "window": RULE.window, "inner": "eager"}


def regional(model: LatteTransformer3DModel, backend: str) -> None:
    model._repeated_blocks = ["BasicTransformerBlock"]
    options = {"options": {"inner": "eager"}} if backend == "pab" else {}
    model.compile_repeated_blocks(backend=backend, **options)


@pytest.mark.sample("enable-pab", "compile-eager")
@pytest.mark.parametrize("backend", ["eager", "pab"])
@pytest.mark.parametrize("how", ["enable", "compile"])
def test_the_whole_model_reuses_whatever_its_blocks_were_compiled_with(
    how: str, backend: str
) -> None:
    model: Any = tiny_latte(depth=1)
    oracle = Oracle(model, RULE)
    eager = Loop(calls_of(copy.deepcopy(model)), ddim_timesteps(NUM_STEPS)).run()
    regional(model, backend)
    if how == "enable":
        handle = pab_compile.enable(model, options=OPTIONS)
        compiled = model
    else:
        handle = None
        compiled = compiled_pab(model, **OPTIONS)
    expected = Loop(oracle, ddim_timesteps(NUM_STEPS)).run()
    assert_same(Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS)).run(), expected)
    assert pab_compile.stats(compiled).reused == oracle.reused()
    if handle is not None:
        with handle.disabled():
            assert torch.equal(Loop(calls_of(model), ddim_timesteps(NUM_STEPS)).run(), eager)


def test_blocks_compiled_alone_name_the_way_out() -> None:
    model = tiny_latte(depth=1)
    regional(model, "pab")
    with pytest.raises(UnsupportedModelError, match=r"pab_compile\.enable\(pipe\)"):
        Loop(calls_of(model), ddim_timesteps(1)).run()


def test_a_model_with_compiled_regions_is_refused_in_favour_of_the_model_itself() -> None:
    model = tiny_latte(depth=1)
    regions = compile_regions(model, backend="eager")
    with pytest.raises(UnsupportedModelError, match="Give the module that was compiled"):
        pab_compile.enable(regions)
    handle = pab_compile.enable(model, "linear3", inner="eager")
    Loop(calls_of(model), ddim_timesteps(6)).run()
    assert all(handle.stats()["model"].reused.values())
