"""Forms: what a graph is compiled for, whatever plan runs in it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from torch import fx

from pab_compile.errors import InvariantError
from pab_compile.options import parse_options
from pab_compile.passes.sites.site import KINDS, Site
from pab_compile.plans.decisions import Decisions
from pab_compile.plans.form import ALL, EACH, KIND, Form, check_together
from pab_compile.plans.live import NOTHING, Choice, LivePlan
from pab_compile.plans.plan import CallablePlan, RangePlan
from pab_compile.plans.plan_file import plan_from_json, plan_to_json
from pab_compile.plans.presets import PRESETS
from pab_compile.plans.schedule import Moment, Schedule

MADE_FOR = {"fingerprint": "f", "cut": "branch", "coalesce": True, "predict_in": "step"}


def site(kind: str = "spatial", name: str = "a", parts: tuple[Site, ...] = ()) -> Site:
    cut = (fx.Graph().placeholder("x"),)
    return Site(name, kind, "sdpa", "", (), (), cut, cut, 0, 0, "", parts=parts)


def form(**options: Any) -> Form:
    parsed = parse_options(options)
    return Form.of(parsed.make_plan(), parsed.cut, parsed.coalesce)


def table(*rows: list[int], **more: Any) -> Any:
    sites = dict(zip("abc", rows, strict=False))
    return plan_from_json({**plan_to_json(sites, len(rows[0])), **more}, "p")


def test_all_presets_that_treat_sites_alike_have_one_form() -> None:
    alike = {form(ranges=name) for name in ("linear2", "linear3", "linear4", "linear5")}
    assert alike == {Form("branch", True, ALL, True)}
    row = table([-1, 0], [-1, 0], **MADE_FOR)
    assert Form.of(row, "branch", True) in alike
    orders = form(ranges=dict.fromkeys(KINDS, 7), predict=2, cut="branch", coalesce=True)
    assert orders in alike


def test_all_plans_by_kind_have_one_form() -> None:
    published = {form(ranges=name) for name in PRESETS if not name.startswith("linear")}
    assert published == {Form("attention", False, EACH, False)}
    assert form(ranges={"spatial": 5}, predict=1) in published
    assert form(ranges={"spatial": 5, "mlp": 2}) == Form("attention", False, EACH, True)


def test_what_is_merged_computes_together_under_every_plan_of_the_form() -> None:
    by_kind = form(ranges={"spatial": 2, "mlp": 3}, cut="branch", coalesce=True)
    assert by_kind.together == KIND
    assert by_kind.pattern(site("spatial")) == by_kind.pattern(site("spatial", "b"))
    assert by_kind.pattern(site("spatial")) != by_kind.pattern(site("cross"))
    one_order = form(ranges=dict.fromkeys(KINDS, 2), predict={"spatial": 1}, coalesce=True)
    assert one_order.together == KIND
    for plan in (
        table([-1, 0], [-1, 1], **MADE_FOR),
        table([-1, 0], [-1, 0]),  # the model may have other sites
        CallablePlan(lambda *_: None),
    ):
        assert Form.of(plan, "branch", True).together == EACH
    assert Form.of(CallablePlan(lambda *_: None), "branch", True).pattern(site()) is None


def test_a_form_decides_nothing() -> None:
    found = form()
    assert [found.may_reuse(site(kind)) for kind in ("spatial", "mlp")] == [True, False]
    assert not found.uncut().may_reuse(site())
    assert found.uncut() == form(ranges="linear3").uncut() != form(ranges="linear3", cut="output")
    assert (found.range_of(site()), found.max_order(site())) == (None, 2)
    found.check([])
    with pytest.raises(InvariantError, match="was asked what a does at step 3"):
        found.entry(site(), Moment(3, None, 0.0, Schedule()))


def test_a_plan_that_treats_merged_sites_differently_is_refused() -> None:
    both = site(parts=(site("spatial"), site("cross", "b")))
    alike = RangePlan({"spatial": 2, "cross": 2}, (0.0, 1.0), {})
    check_together(alike, [both, site("temporal", "c")])
    check_together(NOTHING, [both])
    check_together(table([-1, 0], [-1, 0]), [both])
    for plan in (
        RangePlan({"spatial": 2, "cross": 3}, (0.0, 1.0), {}),
        RangePlan({"spatial": 2}, (0.0, 1.0), {}),
        RangePlan({"spatial": 2, "cross": 2}, (0.0, 1.0), {"cross": 1}),
        CallablePlan(lambda *_: None),
        table([-1, 0], [-1, 1]),
        table([-1, 0]),
    ):
        with pytest.raises(InvariantError, match="does not treat them alike"):
            check_together(plan, [both])


# Live plans


def choice(name: str, preset: str = "linear3") -> Choice:
    parsed = parse_options({"ranges": preset})
    plan = parsed.make_plan()
    return Choice(name, plan, Form.of(plan, parsed.cut, parsed.coalesce))


def test_a_block_concerns_its_own_thread_and_its_own_plan() -> None:
    one, other = LivePlan(choice("one")), LivePlan(choice("other"))
    seen = []
    with one.use(choice("inner")):
        thread = threading.Thread(target=lambda: seen.append(one.current().name))
        thread.start()
        thread.join()
        one.set(choice("common"))
        assert one.current().name == "inner"
        with one.use(choice("innermost")):
            assert one.current().name == "innermost"
        assert one.current().name == "inner"
        assert other.current().name == "other"
    assert one.current().name == "common"
    assert seen == ["one"]


def test_off_keeps_the_form() -> None:
    live = LivePlan(choice("by kind", "pab246"))
    off = live.off()
    assert (off.name, off.plan, off.form) == ("off", NOTHING, choice("", "pab246").form)


def test_options_with_a_live_plan_are_those_of_the_plan_that_holds() -> None:
    live = LivePlan(choice("lines"))
    for preset in ("linear3", "pab246"):
        live.set(choice(preset, preset))
        own, parsed = parse_options({"ranges": preset}), parse_options({"plan": live})
        assert (parsed.cut, parsed.coalesce) == (own.cut, own.coalesce)
        assert parsed.make_plan() == own.make_plan()


def test_a_plan_with_a_least_number_of_steps_computes_shorter_generations() -> None:
    plan = RangePlan({"spatial": 2}, (0.0, 1.0), {}, min_steps=8)
    for num_steps, reuses in ((7, False), (8, True), (None, True)):
        now = Moment(1, 900.0, 1000.0, Schedule(num_steps))
        assert (plan.entry(site(), now) == 0) == reuses


def test_decisions_name_all_outputs_that_a_step_reads() -> None:
    row = [-1, 1, -1, 2, 2, -1, 0, 1, 2]
    reads: list[tuple[int, ...]] = [(), (0,), (), (0, 2), (0, 2), (), (5,), (2, 5), (0, 2, 5)]
    decisions = Decisions(table(row), [site()], Schedule(len(row)), 0.0)
    assert [decisions.at(step, None)[0].sources for step in range(len(row))] == reads
    plan = RangePlan({"spatial": 3}, (0.0, 1.0), {"spatial": 1})
    unknown = Decisions(plan, [site()], Schedule(), 1000.0)
    found = [unknown.at(step, 1000.0 - step)[0].sources for step in range(9)]
    assert found == [(), (0,), (0,), (), (0, 3), (0, 3), (), (3, 6), (3, 6)]
