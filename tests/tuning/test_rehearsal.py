"""Rehearsals: what was computed is replayed, and a generation may stop or run compiled."""

from __future__ import annotations

from typing import Any

import torch

from helpers.curve import COMPUTED, NUM_STEPS, Curve, euler, timesteps_of
from pab_compile.tuning.from_generations import module_of
from pab_compile.tuning.rehearsal import Outputs, Rehearsal
from pab_compile.tuning.row import Row, lengths_of


def test_what_was_computed_before_is_replayed() -> None:
    model = Curve()
    rehearsal = Rehearsal(lambda seed, n: euler(model, seed, n), model)
    known = Outputs()
    row = Row.of(lengths_of(timesteps_of(NUM_STEPS).tolist()), COMPUTED)
    first = rehearsal.run(0, NUM_STEPS, row.entries(), known)
    again = rehearsal.run(0, NUM_STEPS, row.entries(), known)
    assert (first.num_computed, again.num_computed, model.calls) == (5, 0, 5)
    assert first.result is not None
    assert again.result is not None
    assert torch.equal(first.result, again.result)
    assert "forward" not in vars(model)


def test_a_stopped_generation_gives_the_latents_of_its_end() -> None:
    model = Curve()
    rehearsal = Rehearsal(lambda seed, n: euler(model, seed, n), model)
    whole, part = rehearsal.run(0, NUM_STEPS), rehearsal.run(0, NUM_STEPS, stop=3)
    assert part.result is None
    assert model.calls == NUM_STEPS + 3
    assert torch.equal(part.latents[3], whole.latents[3])


def test_a_module_that_torch_compiled_is_rehearsed_compiled() -> None:
    plain = Curve()
    assert module_of(torch.compile(plain)) is not plain, "Inductor's is taken as it is"
    model: Any = torch.compile(plain, backend="eager")
    rehearsal = Rehearsal(lambda seed, n: euler(model, seed, n), model)
    entries = Row.of(lengths_of(timesteps_of(NUM_STEPS).tolist()), COMPUTED).entries()
    run = rehearsal.run(0, NUM_STEPS, entries)
    assert run.num_computed == len(COMPUTED)
    expected = Rehearsal(lambda seed, n: euler(plain, seed, n), plain).run(0, NUM_STEPS, entries)
    torch.testing.assert_close(run.result, expected.result)
