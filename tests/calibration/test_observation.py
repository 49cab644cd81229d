"""Observations: numbers that follow from products of steps, and the file that holds them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.oracle import extrapolate
from pab_compile import ObservationError, load_observation
from pab_compile.calibration.observation import (
    MAX_LAG,
    Observation,
    ObservedRun,
    ObservedSite,
    observation_from_json,
    observation_to_json,
)
from pab_compile.plans.fingerprint import model_fingerprint

NUM_STEPS = 30
KINDS = ("spatial", "mlp")


def values(seed: int = 0) -> torch.Tensor:
    """Outputs that drift: ``[runs, sites, steps, elements]``."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.linspace(0, 1, NUM_STEPS, dtype=torch.float64)[:, None]
    a, b, c = torch.randn(3, 2, 2, 1, 50, generator=generator, dtype=torch.float64)
    return a + b * steps + c * (3 * steps).sin() + 2


def observation(x: torch.Tensor | None = None) -> Observation:
    x = values() if x is None else x
    products = torch.full((*x.shape[:3], MAX_LAG + 1), math.nan, dtype=torch.float64)
    for lag in range(MAX_LAG + 1):
        products[:, :, lag:, lag] = (x[:, :, lag:] * x[:, :, : NUM_STEPS - lag]).mean(-1)
    results = x.sum(1)
    outputs = (results[:, :, None] * results[:, None]).mean(-1)
    timesteps = tuple(range(NUM_STEPS, 0, -1))
    sites = tuple(
        ObservedSite(f"blocks.{i}", kind, f"blocks.{i}", 8, 9) for i, kind in enumerate(KINDS)
    )
    runs = (ObservedRun(0, "cond"), ObservedRun(0, "uncond"))
    return Observation(sites, runs, timesteps, "gated", True, 8, 40, 50, products, outputs)


def same(found: torch.Tensor, step: int, expected: torch.Tensor) -> None:
    assert torch.allclose(found[..., step], expected, rtol=1e-6, atol=1e-7)


def test_changes_between_neighbours_are_those_of_the_values() -> None:
    x, seen = values(), observation()
    for step in (1, 7, NUM_STEPS - 1):
        new, old = x[:, :, step], x[:, :, step - 1]
        same(seen.mean_square(), step, new.square().mean(-1))
        same(seen.difference(), step, (new - old).square().mean(-1))
        same(seen.relative_norm(), step, new.norm(dim=-1) / old.norm(dim=-1))
        same(seen.cosine(), step, torch.cosine_similarity(new, old, dim=-1))
    for first in (seen.difference(), seen.relative_norm(), seen.cosine()):
        assert first[..., 0].isnan().all()


@pytest.mark.parametrize(
    ("order", "distance", "spacing"),
    [(0, 1, None), (0, 8, None), (1, 3, None), (1, 1, 5), (2, 8, None), (2, 2, 4), (2, 1, None)],
)
def test_errors_of_predictions_are_those_of_the_values(
    order: int, distance: int, spacing: int | None
) -> None:
    x = values()
    found = observation().relative_error(order, distance, spacing)
    gap = spacing or distance
    oldest = distance + order * gap
    assert found[..., :oldest].isnan().all()
    for step in {oldest, NUM_STEPS - 1}:
        sources = [step - distance - i * gap for i in range(order + 1)]
        predicted = extrapolate([(float(s), x[:, :, s]) for s in sources], step)
        expected = (predicted - x[:, :, step]).norm(dim=-1) / x[:, :, step].norm(dim=-1)
        same(found, step, expected)


def test_any_sources_and_positions_can_be_judged() -> None:
    x, seen = values(), observation()
    positions = [float(s) ** 2 for s in range(NUM_STEPS)]
    predicted = extrapolate([(positions[s], x[:, :, s]) for s in (4, 7, 9)], positions[12])
    expected = (predicted - x[:, :, 12]).square().mean(-1)
    assert torch.allclose(seen.squared_error(12, (4, 7, 9), positions), expected, rtol=1e-6)


@pytest.mark.parametrize("sources", [(), (12,), (13,), (29 - MAX_LAG - 1,)])
def test_sources_that_were_not_compared_are_refused(sources: tuple[int, ...]) -> None:
    with pytest.raises(ObservationError, match="1 to 24 steps before"):
        observation().squared_error(29 if sources and sources[0] < 9 else 12, sources)
    with pytest.raises(ObservationError, match="at most 24 steps back; here 25"):
        observation().relative_error(2, 1, 12)
    with pytest.raises(ObservationError, match="distance=0"):
        observation().relative_error(0, 0)


def test_the_fingerprint_is_that_of_the_sites_and_the_cut() -> None:
    seen = observation()
    assert seen.fingerprint == model_fingerprint(seen.sites, "gated")
    assert seen.fingerprint != model_fingerprint(seen.sites, "attention")
    assert seen.fingerprint != model_fingerprint(seen.sites[:1], "gated")


def test_writing_and_reading_changes_nothing(tmp_path: Path) -> None:
    seen, path = observation(), tmp_path / "seen.json"
    seen.save(path)
    read = load_observation(path)
    assert (read.sites, read.runs, read.timesteps) == (seen.sites, seen.runs, seen.timesteps)
    for name in ("cut", "coalesce", "kept_bytes", "total_flops", "num_samples"):
        assert getattr(read, name) == getattr(seen, name)
    assert torch.equal(read.outputs, seen.outputs)
    assert torch.equal(read.products.nan_to_num(-7), seen.products.nan_to_num(-7))


def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = json.dumps(observation_to_json(observation()))
    contents = {
        "missing": None,
        "truncated": text[: len(text) // 2],
        "deep": "[" * 100_000,
        "binary": "\ud800",
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.json"
        if content is not None:
            path.write_bytes(content.encode("utf-8", "surrogatepass"))
        with pytest.raises(ObservationError, match=rf"{name}.json' cannot be read as JSON"):
            load_observation(path)
    monkeypatch.setattr("pab_compile.calibration.observation._MAX_FILE_BYTES", 1000)
    (tmp_path / "large.json").write_text(text)
    with pytest.raises(ObservationError, match="at most 1000"):
        load_observation(tmp_path / "large.json")


def test_a_file_that_was_edited_is_refused() -> None:
    content = observation_to_json(observation())
    content["sites"][0]["flops"] += 1
    with pytest.raises(ObservationError, match="changed after it was written"):
        observation_from_json(content, "p")


def test_products_of_the_model_s_outputs_that_cannot_be_are_refused() -> None:
    from pab_compile.calibration.observation import _digest

    for place, value, why in ((1, 3.0, "one product"), (0, -1.0, "negative"), (1, None, "product")):
        content = json.loads(json.dumps(SMALL))
        content["outputs"][place] = value
        content["digest"] = _digest({k: v for k, v in content.items() if k != "digest"})
        with pytest.raises(ObservationError, match=why):
            observation_from_json(content, "p")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.differing_executors])
@given(st.data())
def test_content_that_no_observation_has_is_refused_also_with_a_right_digest(data: Any) -> None:
    from pab_compile.calibration.observation import _digest

    content = json.loads(json.dumps(SMALL))
    del content["digest"]
    where = data.draw(st.sampled_from(PLACES))
    owner = content
    for key in where[:-1]:
        owner = owner[key]
    before, replacement = owner[where[-1]], data.draw(JSON)
    owner[where[-1]] = replacement
    content["digest"] = _digest(content)
    try:
        read = observation_from_json(content, "p")
    except ObservationError as error:
        assert str(error).startswith("p ")
        return
    assert type(replacement) in (type(before), int, float, type(None))
    written = json.loads(json.dumps(observation_to_json(read)))
    del written["digest"], content["digest"]
    assert written == content


@given(JSON)
def test_anything_else_is_no_observation(content: Any) -> None:
    with pytest.raises(ObservationError, match="not an observation"):
        observation_from_json(content, "p")


SMALL = observation_to_json(
    Observation(
        (ObservedSite("a", "mlp", "", 1, 2),),
        (ObservedRun(0, "0"),),
        (9.0, 1.5),
        "gated",
        True,
        1,
        2,
        4,
        torch.ones(1, 1, 2, MAX_LAG + 1, dtype=torch.float64),
        torch.ones(1, 2, 2, dtype=torch.float64),
    )
)
PLACES = [
    ("format",), ("fingerprint",), ("cut",), ("num_samples",), ("timesteps",), ("timesteps", 0),
    ("sites",), ("sites", 0), ("sites", 0, "name"), ("sites", 0, "kind"), ("sites", 0, "flops"),
    ("runs",), ("runs", 0), ("runs", 0, "lane"), ("runs", 0, "generation"), ("products",),
    ("products", 0), ("products", 25), ("products", 49), ("outputs",), ("outputs", 0),
    ("outputs", 1), ("outputs", 3), ("coalesce",), ("kept_bytes",), ("total_flops",),
]  # fmt: skip


def test_the_plot_shows_a_curve_per_kind_and_all_sites() -> None:
    pytest.importorskip("matplotlib")
    figure = observation().plot()
    curves, heat = figure.axes[:2]
    assert [line.get_label() for line in curves.lines] == ["spatial", "mlp"]
    expected = observation().difference().nanmean(0)
    assert curves.lines[1].get_ydata()[3] == pytest.approx(float(expected[1, 3]))
    assert heat.images[0].get_array().shape == (2, NUM_STEPS)
