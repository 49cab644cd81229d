"""Decisions: a plan applied to a schedule, and what must be stored for it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.oracle import extrapolate
from pab_compile.passes.sites.site import Site
from pab_compile.plans.decisions import Decision, Decisions
from pab_compile.plans.plan import COMPUTE, RangePlan
from pab_compile.plans.plan_file import plan_from_json, plan_to_json
from pab_compile.plans.schedule import Schedule
from pab_compile.runtime.cache_entry import CacheEntry

ENTRIES = st.lists(st.integers(COMPUTE, 2), min_size=1, max_size=30)


def site(name: str = "a", kind: str = "spatial") -> Site:
    return Site(name, kind, "sdpa", "", (), (), (), (), 0, 0, "")


def column(entries: list[int]) -> list[Decision]:
    """Decisions of one site for a table of entries."""
    plan = plan_from_json(plan_to_json({"a": entries}, len(entries)), "p")
    decisions = Decisions(plan, [site()], Schedule(len(entries)), 0.0)
    return [decisions.at(step, None)[0] for step in range(len(entries))]


def simulate(entries: list[int]) -> tuple[list[tuple[int, ...]], list[bool]]:
    """Steps whose outputs each step reads, and which computed; by keeping every output for ever."""
    outputs: list[int] = []
    reads: list[tuple[int, ...]] = []
    computed: list[bool] = []
    for step, entry in enumerate(entries):
        computes = entry == COMPUTE or not outputs
        computed.append(computes)
        reads.append(() if computes else tuple(outputs[-entry - 1 :]))
        if computes:
            outputs.append(step)
    return reads, computed


@given(ENTRIES)
def test_a_step_reuses_what_a_run_that_keeps_everything_would_reuse(entries: list[int]) -> None:
    reads, computed = simulate(entries)
    for decision, read, computes in zip(column(entries), reads, computed, strict=True):
        assert decision.reuses != computes
        if decision.reuses:
            assert decision.source == read[-1]


@given(ENTRIES)
def test_an_output_is_kept_exactly_as_long_as_a_later_step_reads_it(entries: list[int]) -> None:
    reads, computed = simulate(entries)
    held: list[int] = []
    for step, decision in enumerate(column(entries)):
        if computed[step]:
            held.append(step)
        assert decision.history is not None
        held = held[len(held) - min(decision.history, len(held)) :]
        later = {source for read in reads[step + 1 :] for source in read}
        assert set(held) == {source for source in later if source <= step}, step


@given(ENTRIES)
def test_a_cache_entry_loads_what_a_full_history_would(
    entries: list[int],
) -> None:
    reads, _ = simulate(entries)
    cached, values = CacheEntry(), torch.randn(len(entries), 3, dtype=torch.float64)
    for step, decision in enumerate(column(entries)):
        assert decision.history is not None
        if not decision.reuses:
            cached.store(step, (values[step],), decision.history)
            continue
        (found,) = cached.load(step, decision.entry)
        steps = reads[step]
        expected = extrapolate([(source, values[source]) for source in steps], step)
        assert torch.allclose(found, expected, rtol=1e-6)
        cached.drop_older_than(decision.history)
    assert cached.num_bytes() == 0


def test_a_plan_that_reuses_before_anything_was_computed_computes() -> None:
    assert [decision.reuses for decision in column([0, 0, 1])] == [False, True, True]


@given(st.integers(1, 8), st.integers(2, 40), st.integers(0, 2))
def test_the_table_in_advance_equals_the_rows_one_by_one(
    span: int, num_steps: int, order: int
) -> None:
    plan = RangePlan({"spatial": span, "cross": 3}, (100, 900), {"spatial": order})
    sites = [site(), site("b", "cross"), site("c", "mlp")]
    timesteps = torch.linspace(999, 0, num_steps).tolist()
    known = Decisions(plan, sites, Schedule(num_steps, tuple(timesteps)), timesteps[0])
    live = Decisions(plan, sites, Schedule(), timesteps[0])
    for step, timestep in enumerate(timesteps):
        ahead, now = known.at(step, None), live.at(step, timestep)
        assert [(d.entry, d.source if d.reuses else None) for d in ahead] == [
            (d.entry, d.source if d.reuses else None) for d in now
        ]
        assert all(d.history is None for d in now)


def test_asking_again_gives_the_same_answer() -> None:
    plan = RangePlan({"spatial": 2}, (0, 1000), {})
    live = Decisions(plan, [site()], Schedule(), 999.0)
    rows = [live.at(step, 999.0 - step) for step in range(4)]
    assert [live.at(step, 0.0) for step in range(4)] == rows


def test_after_a_step_that_was_never_asked_for_everything_computes() -> None:
    plan = RangePlan({"spatial": 4}, (0, 1000), {})
    live = Decisions(plan, [site()], Schedule(), 999.0)
    assert not live.at(0, 999.0)[0].reuses
    assert live.at(1, 998.0)[0].reuses
    assert not live.at(3, 996.0)[0].reuses


@pytest.mark.parametrize(
    ("name", "timesteps", "window", "ranges", "computed"),
    [
        ("Latte", list(range(980, -1, -20)), (100, 800), (2, 3, 6), (33, 27, 22)),
        (
            "Open-Sora",
            [
                *(1000, 992, 984, 976, 968, 960, 952, 940, 932, 920, 908, 892, 880, 864, 848),
                *(828, 808, 788, 764, 736, 708, 676, 636, 596, 548, 492, 426, 350, 258, 143),
            ],
            (450, 930),
            (2, 4, 6),
            (21, 17, 16),
        ),
    ],
)
def test_published_schedules_give_the_published_numbers(
    name: str,
    timesteps: list[int],
    window: tuple[int, int],
    ranges: tuple[int, int, int],
    computed: tuple[int, int, int],
) -> None:
    kinds = ("spatial", "temporal", "cross")
    plan = RangePlan(dict(zip(kinds, ranges, strict=True)), window, {})
    schedule = Schedule(len(timesteps), tuple(map(float, timesteps)))
    decisions = Decisions(plan, [site(k, k) for k in kinds], schedule, float(timesteps[0]))
    rows = [decisions.at(step, None) for step in range(len(timesteps))]
    assert tuple(sum(not row[i].reuses for row in rows) for i in range(3)) == computed
