"""Code that Dynamo breaks into several graphs: branches are reused, or whole outputs are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

import pab_compile
from helpers.latte import assert_different, assert_same

from .base import RANGES, Foreign, as_oracle
from .broken import BROKEN, LoopInForward, NotCompiled, SharedFrequencies
from .test_foreign import NUM_STEPS, build, inputs_of, tensors

pytestmark = pytest.mark.filterwarnings("ignore:.*")
NOT_IN_PARTS = {NotCompiled, LoopInForward, SharedFrequencies}
EVERY = [pytest.param(make, id=name) for name, make in BROKEN.items()]
FLOOR = {"ranges": {"output": 2}, "window": (0.0, 1.0), "cut": "output", "inner": "eager"}


@pytest.mark.sample("grids are read")
@pytest.mark.parametrize("make", [case for case in EVERY if not NOT_IN_PARTS & set(case.values)])
def test_numbers_that_are_read_do_not_stop_the_reuse_of_branches(
    make: Callable[[], Foreign],
) -> None:
    model = build(make)
    options = {"ranges": RANGES, "window": (0.0, 1.0), "inner": "eager"}
    compiled: Any = torch.compile(model, backend="pab", options=options)
    for step in range(NUM_STEPS):
        inputs = inputs_of(model, step)
        with as_oracle(model, step):
            expected = tensors(model(**inputs))
        with pab_compile.step(step, NUM_STEPS):
            actual = tensors(compiled(**inputs))
        for ours, right in zip(actual, expected, strict=True):
            assert_same(ours, right)
    kinds = Counter(site.kind for site in model.sites)  # type: ignore[union-attr]
    del kinds["mlp"]
    assert pab_compile.explain(compiled).counts() == kinds
    reused = pab_compile.stats(compiled).reused
    assert reused == {"full": 6, "cross": 8}


@pytest.mark.sample("a graph runs for queries and keys")
@pytest.mark.parametrize("make", EVERY)
def test_the_whole_output_is_the_last_one_that_was_computed(make: Callable[[], Foreign]) -> None:
    model = build(make)
    compiled: Any = torch.compile(model, backend="pab", options=FLOOR)
    before: list[torch.Tensor] = []
    for step in range(NUM_STEPS):
        inputs = inputs_of(model, step)
        eager = tensors(model(**inputs))
        with pab_compile.step(step, NUM_STEPS):
            actual = tensors(compiled(**inputs))
        for number, (ours, plain) in enumerate(zip(actual, eager, strict=True)):
            if step % 2 == 0:
                assert torch.equal(ours, plain)
            else:
                assert_same(ours, before[number])
                assert_different(ours, plain)
        before = actual
    stats = pab_compile.stats(compiled)
    assert stats.reused["output"] == stats.computed["output"] > 0
    assert stats.notes == ()


def test_where_no_graph_shows_the_latents_the_whole_output_is_offered() -> None:
    """The patches are made between graphs, so that nothing is known of the tokens."""
    model = build(LoopInForward)
    options = {"ranges": RANGES, "window": (0.0, 1.0), "inner": "eager"}
    compiled: Any = torch.compile(model, backend="pab", options=options)
    with pytest.raises(pab_compile.UnsupportedModelError, match='"cut": "output"'):
        for step in range(2):
            with pab_compile.step(step, NUM_STEPS):
                compiled(**inputs_of(model, step))
