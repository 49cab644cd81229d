"""Code that stock torch.compile runs: assertions, checkpoints, packed weights and their views."""

from __future__ import annotations

import pytest
import torch

import pab_compile
from helpers.eager_code import RANGES, TRAITS, as_oracle, calls, compiled, make
from helpers.latte import assert_same

OTHER_KERNELS = "nn.MultiheadAttention"  # in eager mode it has a kernel of its own


def check_eager(
    trait: str, found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5
) -> None:
    """Equal bit for bit where the same kernels run."""
    if trait == OTHER_KERNELS:
        assert_same(found, expected, tolerance)
    else:
        assert torch.equal(found, expected)


@pytest.mark.sample("an assertion about the latents", "autocast inside", "a plain view of a weight")
@pytest.mark.parametrize("trait", TRAITS)
def test_nothing_reused_is_eager_and_reuse_is_what_the_model_repeats_itself(trait: str) -> None:
    model = make(trait)
    always, reusing = compiled(model, {}), compiled(model, RANGES)
    for step, inputs in enumerate(calls()):
        check_eager(trait, always(*inputs), model(*inputs))
        with as_oracle(model, step):
            expected = model(*inputs)
        assert_same(reusing(*inputs), expected)
    assert pab_compile.stats(reusing).reused == {"full": 3, "cross": 4}


@pytest.mark.sample("autocast inside", "a packed weight")
@pytest.mark.parametrize("trait", TRAITS)
def test_in_bfloat16_nothing_reused_is_eager(trait: str) -> None:
    model = make(trait, torch.bfloat16)
    model.embed = lambda t, embed=model.embed: embed(t).bfloat16()  # type: ignore[method-assign]
    model.time.float()
    inputs = next(calls(torch.bfloat16))
    check_eager(trait, compiled(model, {})(*inputs), model(*inputs), tolerance=2e-2)


def test_the_model_is_compiled_whole_in_spite_of_checkpoints() -> None:
    found = pab_compile.explain(make("a checkpointed block"), *next(calls()))
    assert found.num_graphs == 1
    assert found.counts() == {"full": 1, "cross": 1}


@pytest.mark.parametrize("trait", [trait for trait in TRAITS if "assertion" in trait])
def test_an_assertion_fails_at_the_step_at_which_it_does_not_hold(trait: str) -> None:
    model = compiled(make(trait), RANGES)
    for step, (x, timestep, context) in enumerate(calls()):
        if step == 3:
            broken = x if trait.endswith("latents") else context
            broken[0, 0, 0] = float("nan")
            with pytest.raises(RuntimeError, match=r"nonzero value|[Aa]ssert"):
                model(x, timestep, context)
            return
        model(x, timestep, context)
