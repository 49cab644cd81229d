"""Failures of the compilation itself: named as ours, and no obstacle with passthrough."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, LatteTransformer3DModel

import pab_compile
import pab_compile.compile.build
from helpers.eager_code import RANGES, Dit, calls, compiled, make
from pab_compile.errors import InvariantError, UnsupportedModelError


@pytest.fixture(
    params=[KeyError("split"), AssertionError(), AttributeError("x"), InvariantError("y")]
)
def failing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Exception:
    """A pass fails in a way that nobody foresaw."""

    def fail(*args: Any) -> Any:
        raise request.param

    monkeypatch.setattr(pab_compile.compile.build, "analyse", fail)
    return request.param


def test_it_is_called_a_defect_of_the_library(failing: Exception) -> None:
    with pytest.raises(InvariantError, match=r"defect of pab_compile|y") as caught:
        compiled(make("plain"), RANGES)(*next(calls()))
    assert caught.value is failing or caught.value.__cause__ is failing


def test_passthrough_computes_at_every_step_and_says_why(failing: Exception) -> None:
    model = make("plain")
    passing = compiled(model, RANGES, on_unsupported="passthrough")
    for step, inputs in enumerate(calls()):
        if step == 0:
            with pytest.warns(UserWarning, match="compiled without reuse"):
                found = passing(*inputs)
        else:
            found = passing(*inputs)
        assert torch.equal(found, model(*inputs))


def test_a_cache_of_diffusers_on_the_same_model_is_refused_by_its_name() -> None:
    class Cached(Dit):
        is_cache_enabled = True
        _cache_config = FirstBlockCacheConfig()

    assert isinstance(LatteTransformer3DModel.is_cache_enabled, property)  # as diffusers has it
    model = Cached().eval().requires_grad_(False)
    with pytest.raises(UnsupportedModelError, match=r"FirstBlockCacheConfig.*disable_cache\(\)"):
        compiled(model, RANGES)(*next(calls()))
