"""Models drawn at random: their attentions are found, and reuse is what was built in."""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import Phase, given, settings

import pab_compile
from helpers.latte import assert_same
from helpers.random_dits import Oracle, RandomDit, Spec, inputs_of, specs

RANGES = {"spatial": 2, "temporal": 3, "full": 2, "joint": 3, "cross": 2}
NUM_STEPS = 4


def check(spec: Spec) -> None:
    torch._dynamo.reset()
    model = RandomDit(spec)
    options = {"inner": "eager", "ranges": RANGES, "window": (0.0, 1.0)}
    compiled = torch.compile(model, backend="pab", fullgraph=True, options=options)
    oracle = Oracle(spec, RANGES)
    for step, inputs in enumerate(inputs_of(spec, NUM_STEPS)):
        actual, expected = compiled(**inputs), oracle.at(step, inputs)
        if step == 0:
            assert torch.equal(actual, expected)
        assert_same(actual, expected)
    stats = pab_compile.stats(compiled)
    ran = Counter(stats.computed) + Counter(stats.reused)
    del ran["mlp"]
    assert ran == Counter({kind: number * NUM_STEPS for kind, number in spec.kinds.items()})


def test_attentions_are_found_and_reused_as_they_were_built(runs_all: bool) -> None:
    # A failure is reported as it was found: making it smaller would compile hundreds of models.
    number = 20 if runs_all else 6
    drawn = settings(
        max_examples=number, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
    )
    drawn(given(specs())(check))()
