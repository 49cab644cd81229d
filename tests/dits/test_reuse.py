"""Every DiT reuses as module hooks would, and is itself where nothing is reused."""

from __future__ import annotations

import pytest
import torch

import pab_compile
from latte import assert_different, assert_same

from .build import Denoising, build, run
from .catalogue import CATALOGUE
from .oracle import RANGES, WINDOW, Oracle
from .spec import Dit

NUM_STEPS = 10
# Some models ask for autocast to float32, which CPUs do not have and say so.
pytestmark = [
    pytest.mark.filterwarnings("ignore:In CPU autocast"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]
DITS = [pytest.param(dit, id=name) for name, dit in CATALOGUE.items() if not dit.unsupported]


@pytest.mark.parametrize("dit", DITS)
def test_ten_steps_are_those_of_module_hooks(dit: Dit) -> None:
    model = build(dit)
    loop = Denoising(dit, NUM_STEPS)
    # Before compiling: some models make tables at their first call, which Dynamo cannot trace.
    eager = [run(model, **loop.at(step)) for step in range(NUM_STEPS)]
    options = {"inner": "eager", "ranges": RANGES, "window": WINDOW, **dit.options}
    compiled = torch.compile(model, backend="pab", fullgraph=dit.graphs == 1, options=options)
    actual = [run(compiled, **loop.at(0))]
    with torch._dynamo.config.patch(error_on_recompile=True):
        actual += [run(compiled, **loop.at(step)) for step in range(1, NUM_STEPS)]
    for computed, expected in zip(actual[0], eager[0], strict=True):
        assert torch.equal(computed, expected), "a step without reuse is not what eager computes"

    oracle = Oracle(model, dit)
    expected = [oracle(step, NUM_STEPS, **loop.at(step)) for step in range(NUM_STEPS)]
    for at_step, wanted in zip(actual, expected, strict=True):
        for computed, hooked in zip(at_step, wanted, strict=True):
            assert_same(computed, hooked)
    assert_different(torch.stack([step[0] for step in eager]), torch.stack([s[0] for s in actual]))
    reused = pab_compile.stats(compiled).reused
    assert {kind: n for kind, n in reused.items() if n} == dict(oracle.reused)
