"""Random models: kinds, numbers and operations are what was built, and the oracle can fail."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from .check import PAB, VARIANTS, Now, Wrong, calls, check
from .draw import draw
from .signatures import build
from .sites import tell
from .spec import Spec

NUM_MODELS = 40
FOUND = (5013, 20104, 20118, 20236, 20258, 30304, 30858)  # faults that later models showed
SAMPLE = ("3",)  # all layouts and streams are among 0 to 39


@pytest.mark.sample(*SAMPLE)
@pytest.mark.parametrize("seed", [*range(NUM_MODELS), *FOUND])
def test_a_random_model_is_found_and_reused_as_it_was_built(seed: int) -> None:
    names = tuple(VARIANTS)
    check(draw(seed), names if seed % 3 == 0 else names[1:])


def test_traits_occur_with_all_their_values() -> None:
    seen = Counter(f"{k}={v}" for seed in range(NUM_MODELS) for k, v in draw(seed).traits().items())
    every = Counter(f"{k}={v}" for seed in range(1000) for k, v in draw(seed).traits().items())
    assert len(every) > 120
    assert len(seen.keys() & every.keys()) > 0.9 * len(every)
    assert draw(7) == draw(7) != draw(8)


# The checks find what is wrong.


class _Misled(Spec):
    """A spec that claims one attention more than its model has."""

    @property
    def kinds(self) -> Counter[str]:
        return Counter(super().kinds) + Counter(full=1)


def _traits(spec: Spec) -> dict[str, object]:
    return {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}


@pytest.mark.long
def test_another_number_of_attentions_is_found_out() -> None:
    misled = _Misled(**_traits(draw(4)))  # type: ignore[arg-type]
    with pytest.raises(Wrong, match="kinds"):
        check(misled, ("PAB",))


def test_an_attention_that_is_never_reused_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS["PAB"], "ranges", {})
    with pytest.raises(Wrong, match="numbers"):
        check(draw(4), ("PAB",))


def test_without_a_reuse_the_sites_are_the_model() -> None:
    for seed in range(NUM_MODELS):
        spec = draw(seed)
        model, call = build(spec), next(calls(spec, build(spec), 1))
        tell(model, Now("attention", PAB))
        told = call.of(model)
        tell(model, None)
        error = (told - call.of(model)).abs().max() / told.abs().max()
        assert error < (1e-4 if spec.dtype == "float32" else 4e-2), str(spec)
