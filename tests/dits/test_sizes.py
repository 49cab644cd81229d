"""One compiled model at several sizes: each is what module hooks give at that size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pab_compile

from .build import Denoising, build
from .catalogue import CATALOGUE
from .oracle import RANGES, WINDOW, Oracle, check_reuse
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
        oracle = Oracle(build(dit), dit)
        check_reuse(loop, model, compiled, oracle)
        reused = pab_compile.stats(compiled).reused
        assert {kind: n for kind, n in reused.items() if n} == dict(oracle.reused), sizes


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "dynamic"), [("latte", None), ("wan", None), ("wan", True), ("cogvideox", True)]
)
def test_every_size_is_that_of_module_hooks(name: str, dynamic: bool | None) -> None:
    check_at_every_size(CATALOGUE[name], dynamic=dynamic)
