"""Plans: the paper's rule, a function, a file."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx

from pab_compile.errors import PlanError
from pab_compile.passes.sites.site import Site
from pab_compile.plans.fingerprint import model_fingerprint
from pab_compile.plans.plan import COMPUTE, CallablePlan, RangePlan
from pab_compile.plans.plan_file import load_plan, plan_from_json, plan_to_json, resample
from pab_compile.plans.schedule import Moment, Schedule


def site(kind: str = "spatial", name: str = "a", can_broadcast: bool = True) -> Site:
    node = fx.Graph().placeholder("x")
    cut = (node,) if can_broadcast else ()
    return Site(name, kind, "sdpa", "", (), (), cut, cut, 0, 0, "")


def moment(step: int, timesteps: list[float]) -> Moment:
    schedule = Schedule(len(timesteps), tuple(timesteps))
    return Moment(step, timesteps[step], timesteps[0], schedule)


def content(**changes: Any) -> dict[str, Any]:
    """A plan file's content, with some of it replaced."""
    right = {"format": "pab_compile.plan/1", "num_steps": 3, "sites": {"a": ["C", 0, 1]}}
    return right | changes


def refused(given: Any) -> str:
    with pytest.raises(PlanError) as caught:
        plan_from_json(given, "The plan file 'p.json'")
    assert str(caught.value).startswith("The plan file 'p.json'")
    return str(caught.value)


@given(
    st.integers(1, 9),
    st.integers(2, 60),
    st.integers(0, 900),
    st.integers(1, 500),
    st.integers(0, 2),
)
def test_in_timesteps_an_entry_follows_the_rule_of_the_paper(
    span: int, num_steps: int, low: int, width: int, order: int
) -> None:
    high = low + width
    plan = RangePlan({"spatial": span}, (low, high), {"spatial": order})
    timesteps = torch.linspace(999, 0, num_steps).round().tolist()
    for count, t in enumerate(timesteps):
        reuse = span > 1 and count % span != 0 and low < t < high
        assert plan.entry(site(), moment(count, timesteps)) == (order if reuse else COMPUTE)


@given(st.integers(1, 9), st.integers(1, 60), st.floats(0, 1), st.floats(0, 1))
def test_in_fractions_the_window_is_half_open_over_the_steps(
    span: int, num_steps: int, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    plan = RangePlan({"spatial": span}, (low, high), {})
    timesteps = [float(num_steps - i) for i in range(num_steps)]
    for count in range(num_steps):
        reuse = count % span != 0 and low <= count / num_steps < high
        assert (plan.entry(site(), moment(count, timesteps)) != COMPUTE) == reuse


def test_both_bounds_in_timesteps_are_exclusive() -> None:
    plan = RangePlan({"spatial": 9}, (100, 800), {})
    timesteps = [999.0, 800.0, 799.0, 101.0, 100.0]
    reused = [plan.entry(site(), moment(i, timesteps)) != COMPUTE for i in range(5)]
    assert reused == [False, False, True, True, False]


def test_the_phase_counts_from_the_first_step_not_from_the_window() -> None:
    plan = RangePlan({"spatial": 3}, (0.2, 1.0), {})
    timesteps = [float(9 - i) for i in range(10)]
    entries = [plan.entry(site(), moment(i, timesteps)) for i in range(10)]
    assert [i for i, entry in enumerate(entries) if entry == COMPUTE] == [0, 1, 3, 6, 9]


def test_a_timestep_that_is_not_known_lies_in_no_window_of_timesteps() -> None:
    plan = RangePlan({"spatial": 2}, (0, 1000), {})
    assert plan.entry(site(), Moment(1, None, 999.0, Schedule())) == COMPUTE


def test_without_a_number_of_steps_fractions_follow_the_timestep() -> None:
    plan = RangePlan({"spatial": 2}, (0.15, 0.85), {})
    for first in (1000.0, 1.0):
        for share, reuses in ((0.9, False), (0.8, True), (0.2, True), (0.1, False)):
            now = Moment(1, first * share, first, Schedule())
            assert (plan.entry(site(), now) != COMPUTE) == reuses


@pytest.mark.parametrize(
    ("first", "timestep", "progress"),
    [
        (10.0, 5.0, 0.5),
        (10.0, -5.0, 1.0),  # behind 0
        (0.0, 0.5, 0.5),
        (0.0, 250.0, 0.25),
        (900.0, 1100.0, 1.0),
        (1000.0, 1001.0, 1.0),
        (-10.0, 0.0, 0.5),  # a logarithm of a ratio
        (-10.0, 5.0, 0.75),
        (-1.0, -4.0, 0.0),  # where it leads to is unknown
        (0.0, -4.0, 0.0),
    ],
)
def test_the_fraction_that_a_timestep_stands_for(
    first: float, timestep: float, progress: float
) -> None:
    found = Schedule().progress(3, timestep, first)
    assert found == pytest.approx(progress)
    assert 0 <= found < 1


def test_every_step_lies_in_the_window_of_the_whole_generation() -> None:
    plan = RangePlan({"spatial": 2}, (0.0, 1.0), {})
    for timestep in (9.0, 1.0, 0.0, -3.0, -9.0):
        assert plan.entry(site(), Moment(1, timestep, 10.0, Schedule())) != COMPUTE


def test_a_range_plan_says_what_can_be_reused() -> None:
    plan = RangePlan({"spatial": 2, "cross": 1}, (0.0, 1.0), {"spatial": 1})
    assert [plan.may_reuse(site(kind)) for kind in ("spatial", "cross", "mlp")] == [
        True,
        False,
        False,
    ]
    assert [plan.range_of(site(kind)) for kind in ("spatial", "cross", "mlp")] == [2, 1, 1]
    assert [plan.max_order(site(kind)) for kind in ("spatial", "cross")] == [1, 0]
    plan.check([])


def test_a_branch_of_several_kinds_is_reused_where_each_of_them_is() -> None:
    plan = RangePlan({"spatial": 2, "cross": 3, "full": 2}, (0.0, 1.0), {"spatial": 1, "full": 1})
    both, alike, partly = (
        replace(site("spatial"), other_kinds=(kind,)) for kind in ("cross", "full", "temporal")
    )
    reused = [i for i in range(8) if plan.entry(both, moment(i, [1.0] * 8)) != COMPUTE]
    assert reused == [1, 5, 7]
    assert (plan.range_of(both), plan.max_order(both)) == (None, 0)
    assert (plan.range_of(alike), plan.max_order(alike)) == (2, 1)
    assert plan.pattern(alike) == plan.pattern(site("full")) != plan.pattern(both)
    assert (plan.may_reuse(partly), plan.range_of(partly), plan.pattern(partly)) == (False, 1, None)


def test_a_function_is_asked_with_site_step_steps_and_timestep() -> None:
    asked: list[tuple[Any, ...]] = []

    def function(*args: Any) -> int | None:
        asked.append(args)
        return None if args[1] == 0 else 1

    plan, one = CallablePlan(function), site()
    entries = [plan.entry(one, moment(i, [9.0, 5.0])) for i in range(2)]
    assert entries == [COMPUTE, 1]
    assert asked == [(one, 0, 2, 9.0), (one, 1, 2, 5.0)]
    assert plan.may_reuse(one)
    assert (plan.range_of(one), plan.max_order(one)) == (None, 2)


@pytest.mark.parametrize("answer", [-1, 3, True, "C", 0.0])
def test_an_answer_of_a_function_that_is_no_entry_is_refused(answer: Any) -> None:
    with pytest.raises(PlanError, match=r"plan function, a: .* found " + repr(answer)):
        CallablePlan(lambda *_: answer).entry(site(), moment(0, [9.0, 5.0]))


def test_a_table_gives_its_entries_and_computes_what_it_does_not_name() -> None:
    plan = plan_from_json(content(), "p")
    timesteps = [9.0, 5.0, 1.0]
    assert [plan.entry(site(), moment(i, timesteps)) for i in range(3)] == [COMPUTE, 0, 1]
    other = site(name="b")
    assert [plan.entry(other, moment(i, timesteps)) for i in range(3)] == [COMPUTE] * 3
    assert (plan.may_reuse(site()), plan.may_reuse(other)) == (True, False)
    assert (plan.max_order(site()), plan.max_order(other)) == (1, 0)
    assert plan.range_of(site()) is None


def test_a_table_for_another_number_of_steps_is_refused_when_it_is_used() -> None:
    plan = plan_from_json(content(), "The plan file 'p.json'")
    with pytest.raises(PlanError, match=r"made for 3 steps, but this generation has 4"):
        plan.entry(site(), moment(0, [9.0, 7.0, 5.0, 1.0]))


def test_a_table_computes_where_the_number_of_steps_is_not_known() -> None:
    plan = plan_from_json(content(), "p")
    assert plan.entry(site(), Moment(1, 5.0, 9.0, Schedule())) == COMPUTE


@pytest.mark.parametrize("name", ["b", "text"])
def test_a_table_that_names_strange_sites_is_refused(name: str) -> None:
    plan = plan_from_json(content(sites={name: ["C", 0, 0]}), "The plan file 'p.json'")
    with pytest.raises(PlanError) as caught:
        plan.check([site(), site(name="text", can_broadcast=False)])
    message = str(caught.value)
    assert f"first {name!r}" in message
    assert "The model's sites are: a." in message
    assert "made for another model?" in message
    plan_from_json(content(), "p").check([site()])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], 'lacks "format"'),
        ({}, 'lacks "format"'),
        (content(format="pab_compile.plan/3"), 'lacks "format": "pab_compile.plan/1"'),
        (content(num_steps=0), '"num_steps" must be a positive integer, got 0'),
        (content(num_steps=True), "got True"),
        (content(num_steps="3"), "got '3'"),
        (content(sites=[]), '"sites" must map names to entries, got list'),
        (content(sites={"a": ["C", 0]}), "site 'a' needs 3 entries, found 2 entries"),
        (content(sites={"a": "CCC"}), "site 'a' needs 3 entries, found 'CCC'"),
        (content(sites={"a": ["C", 0, 3]}), "found 3"),
        (content(sites={"a": ["C", -1, 0]}), "found -1"),
        (content(sites={"a": ["C", None, 0]}), "found None"),
        (content(sites={"a": ["C", True, 0]}), "found True"),
        (content(sites={"a": ["C", "R", 0]}), "found 'R'"),
    ],
    ids=str,
)
def test_content_that_is_no_plan_is_refused(given: Any, words: str) -> None:
    assert words in refused(given)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"missing.json' does not exist"):
        load_plan(tmp_path / "missing.json")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (broken, binary):
        with pytest.raises(PlanError, match=rf"{path.name}' cannot be read as JSON"):
            load_plan(path)


@given(
    st.integers(1, 20).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.dictionaries(
                st.text(max_size=5), st.lists(st.integers(-1, 2), min_size=n, max_size=n)
            ),
        )
    )
)
def test_writing_and_reading_a_plan_changes_nothing(
    table: tuple[int, dict[str, list[int]]],
) -> None:
    num_steps, rows = table
    written = json.loads(json.dumps(plan_to_json(rows, num_steps)))
    plan = plan_from_json(written, "p")
    assert plan.num_steps == num_steps
    assert plan.entries == {name: tuple(entries) for name, entries in rows.items()}


# Calibrated plans


def calibrated(**changes: Any) -> dict[str, Any]:
    sites = [site(), site("temporal", "b")]
    made_for = {"fingerprint": model_fingerprint(sites, "gated"), "cut": "gated"}
    return content(**{**made_for, "coalesce": False, "predict_in": "step", **changes})


def test_a_calibrated_plan_is_refused_on_another_model() -> None:
    plan = plan_from_json(calibrated(), "The plan file 'p.json'")
    plan.check([site(), site("temporal", "b"), site(name="c", can_broadcast=False)])
    for others in ([site()], [site(), site("spatial", "b")], [site("temporal", "c"), site()]):
        with pytest.raises(PlanError, match="was calibrated on a model with fingerprint"):
            plan.check(others)


def test_a_calibrated_plan_fits_its_sites_in_any_order() -> None:
    swapped = [site("temporal", "b"), site()]
    plan_from_json(calibrated(), "p").check(swapped)
    assert model_fingerprint(swapped, "gated") == calibrated()["fingerprint"]


def test_a_calibrated_plan_of_an_earlier_version_hashed_the_sites_in_model_order() -> None:
    sites = [site("temporal", "b"), site()]
    words = ["gated", *([one.name, one.kind, one.module] for one in sites)]
    before = hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]
    assert before != model_fingerprint(sites, "gated")
    plan = plan_from_json(calibrated(fingerprint=before), "p")
    plan.check(sites)
    with pytest.raises(PlanError, match="was calibrated on a model with fingerprint"):
        plan.check([*sites, site("cross", "c")])


def test_a_calibrated_plan_says_what_it_is_for() -> None:
    for changes in (
        {"cut": "middle"},
        {"predict_in": None},
        {"fingerprint": 3},
        {"coalesce": 1},
    ):
        assert "says which model it is for" in refused(calibrated(**changes))


def test_a_calibrated_plan_fits_any_number_of_steps() -> None:
    plan = plan_from_json(calibrated(), "p")
    entries = [plan.entry(site(), moment(i, [9.0, 7.0, 5.0, 3.0, 1.0])) for i in range(5)]
    assert entries == [COMPUTE, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("CCC112C12C", "CCC112C12C"),
        ("C1C1C", "C111C111C"),  # gaps in the timestep stay
        ("CCC1C", "CCCCC111C"),  # where neighbours compute, all between them does
        ("C2211C2211C", "C21C21C"),
        ("CC1C1C1C", "CCCC"),
        ("C1C1C", "C"),
    ],
)
def test_a_row_at_another_number_of_steps(row: str, expected: str) -> None:
    def entries(text: str) -> tuple[int, ...]:
        return tuple(COMPUTE if letter == "C" else int(letter) for letter in text)

    assert resample(entries(row), len(expected)) == entries(expected)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@given(st.sampled_from(sorted(calibrated())), json_values)
def test_a_plan_file_with_anything_in_it_is_a_plan_or_an_error(name: str, value: Any) -> None:
    try:
        plan = plan_from_json(calibrated(**{name: value}), "p")
    except PlanError:
        return
    assert all(len(row) == plan.num_steps for row in plan.entries.values())


@given(st.integers(0, 400), st.binary(max_size=3))
def test_a_damaged_plan_file_is_a_plan_or_an_error(place: int, damage: bytes) -> None:
    written = json.dumps(calibrated()).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.json"
        path.write_bytes(written[:place] + damage)
        try:
            load_plan(path)
        except PlanError:
            return


def test_a_huge_or_deep_plan_file_is_refused(tmp_path: Path) -> None:
    deep, huge = tmp_path / "deep.json", tmp_path / "huge.json"
    deep.write_text("[" * 100_000)
    with huge.open("wb") as file:
        file.truncate(2**26 + 1)
    for path in (deep, huge):
        with pytest.raises(PlanError, match="cannot be read as JSON"):
            load_plan(path)
