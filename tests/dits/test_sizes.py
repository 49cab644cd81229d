"""One compiled model at several sizes: each is what module hooks give at that size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pab_compile
from helpers.latte import assert_different, assert_same

from .build import Denoising, build, run
from .catalogue import CATALOGUE
from .oracle import RANGES, WINDOW, Oracle
from .spec import Dit

NUM_STEPS = 6
# Sizes after the usual one and the second resolution, as far as the models themselves allow them.
OTHERS: dict[str, tuple[dict[str, int], ...]] = {
    "latte": ({"frames": 1},),
    "cogvideox": ({"frames": 5}, {}),
    "wan": ({"frames": 5}, {"text": 4}, {}),
}


def check_at_every_size(dit: Dit, **how: Any) -> None:
    model = build(dit)
    options = {"inner": "eager", "ranges": RANGES, "window": WINDOW, **dit.options}
    compiled = torch.compile(model, backend="pab", options=options, **how)
    for sizes in ({}, dit.sizes, *OTHERS[dit.name]):
        loop = Denoising(dit, NUM_STEPS, **sizes)
        eager = [run(model, **loop.at(step))[0] for step in range(NUM_STEPS)]
        actual = [run(compiled, **loop.at(step))[0] for step in range(NUM_STEPS)]
        oracle = Oracle(build(dit), dit)
        expected = [oracle(step, NUM_STEPS, **loop.at(step))[0] for step in range(NUM_STEPS)]
        assert_different(torch.stack(eager), torch.stack(expected))
        assert_same(torch.stack(actual), torch.stack(expected))
        reused = pab_compile.stats(compiled).reused
        assert {kind: n for kind, n in reused.items() if n} == dict(oracle.reused), sizes


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("name", OTHERS)
def test_every_size_is_that_of_module_hooks(name: str, dynamic: bool | None) -> None:
    check_at_every_size(CATALOGUE[name], dynamic=dynamic)
