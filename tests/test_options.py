"""Options: validated once, and the plan that they describe."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pab_compile.auto_split import AutoSplit
from pab_compile.errors import OptionError, PabError, RanksError
from pab_compile.options import Options, parse_options, read_options
from pab_compile.passes.sites.site import KINDS, Site
from pab_compile.plans.hints import near_miss
from pab_compile.plans.plan import COMPUTE, CallablePlan, RangePlan
from pab_compile.plans.plan_file import TablePlan
from pab_compile.plans.presets import DEFAULT_RANGES, DEFAULT_WINDOW, PRESETS, Preset
from pab_compile.ranks.mesh import peers_of


def refused(options: dict[str, Any]) -> str:
    """The message with which options are refused."""
    with pytest.raises(OptionError) as caught:
        parse_options(options)
    assert isinstance(caught.value, PabError)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def test_nothing_given_is_the_default_plan() -> None:
    for given in (None, {}):
        plan = parse_options(given).make_plan()
        assert isinstance(plan, RangePlan)
        assert plan.ranges == DEFAULT_RANGES
        assert plan.window == DEFAULT_WINDOW
        assert plan.predict == dict.fromkeys(KINDS, 0)


def test_the_environment_gives_the_dump_directory_and_the_option_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PAB_DUMP", "from_environment")
    assert parse_options({}).dump == "from_environment"
    assert parse_options({"dump": "given"}).dump == "given"
    monkeypatch.setenv("PAB_DUMP", "")
    assert parse_options({}).dump is None


def test_mode_comes_as_argument_or_option() -> None:
    assert parse_options({}, "reduce-overhead").mode == "reduce-overhead"
    assert parse_options({"mode": "max-autotune"}).mode == "max-autotune"


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_brings_its_options_unless_they_are_given(name: str) -> None:
    preset, parsed = PRESETS[name], parse_options({"ranges": name})
    plan = parsed.make_plan()
    assert isinstance(plan, RangePlan)
    assert (plan.ranges, plan.window) == (preset.ranges, preset.window)
    assert plan.predict == dict.fromkeys(KINDS, preset.predict)
    assert (parsed.cut, parsed.coalesce) == (preset.cut, preset.coalesce)
    given = {"window": (0.2, 0.7), "predict": 2, "cut": "attention", "coalesce": False}
    for option, value in given.items():
        other = parse_options({"ranges": name, option: value})
        assert other == replace(parsed, **{option: value})


def test_the_published_presets_have_the_published_values() -> None:
    published = {
        "pab246": (2, 4, 6, (0.15, 0.85)),
        "pab357": (3, 5, 7, (0.15, 0.85)),
        "pab579": (5, 7, 9, (0.15, 0.85)),
        "latte": (2, 3, 6, (100, 800)),
        "open-sora": (2, 4, 6, (450, 930)),
        "open-sora-plan": (2, 4, 6, (100, 850)),
    }
    for name, (spatial, temporal, cross, window) in published.items():
        ranges = {"spatial": spatial, "temporal": temporal, "cross": cross}
        assert PRESETS[name] == Preset({**ranges, "full": spatial, "joint": spatial}, window)


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_our_presets_put_every_site_on_a_line_through_sums(number: int) -> None:
    every = dict.fromkeys(KINDS, number)
    assert PRESETS[f"linear{number}"] == Preset(every, (0.1, 1.0), 1, "branch", coalesce=True)


def test_prediction_is_one_order_or_one_per_kind() -> None:
    for given, expected in ((1, dict.fromkeys(KINDS, 1)), ({"spatial": 1}, {"spatial": 1})):
        plan = parse_options({"predict": given}).make_plan()
        assert isinstance(plan, RangePlan)
        assert plan.predict == expected


def test_a_function_is_a_plan(tmp_path: Path) -> None:
    assert isinstance(parse_options({"plan": lambda *_: None}).make_plan(), CallablePlan)


def test_a_file_is_a_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"format": "pab_compile.plan/1", "num_steps": 2, "sites": {"a": ["C", 0]}}')
    for given in (path, str(path)):
        plan = parse_options({"plan": given}).make_plan()
        assert isinstance(plan, TablePlan)
        assert plan.entries == {"a": (COMPUTE, 0)}


def test_options_may_be_yaml(tmp_path: Path) -> None:
    text = "ranges: {spatial: 2}\nwindow: [0, 9]\ncoalesce: true\n"
    (tmp_path / "pab.yaml").write_text(text)
    for given in (text, tmp_path / "pab.yaml", str(tmp_path / "pab.yaml")):
        parsed = parse_options(given)
        assert (parsed.ranges, parsed.coalesce) == ({"spatial": 2}, True), given
    assert read_options("level: off") == {"level": "off"}, "a level, no truth value"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ranges: {spatial: 2", "cannot be read as YAML"),
        ("- ranges\n- latte\n", "no YAML object"),
        ("ranges: !!python/object/apply:os.getcwd []", "cannot be read as YAML"),
    ],
)
def test_yaml_that_states_no_options_is_refused(text: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        parse_options(text)


def test_yaml_without_pyyaml_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(OptionError, match="pip install pyyaml"):
        parse_options("ranges: linear3")


def test_what_was_given_is_not_changed_and_changes_nothing_later() -> None:
    ranges = {"spatial": 2}
    given = {"ranges": ranges}
    plan = parse_options(given, "default").make_plan()
    ranges["spatial"] = 9
    assert given == {"ranges": ranges}
    assert isinstance(plan, RangePlan)
    assert plan.ranges == {"spatial": 2}


def test_options_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        parse_options({}).cut = "gated"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"range": {}},
            ["Unknown option 'range'", "Did you mean 'ranges'?", "Known: axes, batch_mesh"],
        ),
        ({"ranges": {"spacial": 2}}, ["unknown kind 'spacial'", "Did you mean 'spatial'?"]),
        ({"ranges": "latt"}, ["Unknown preset 'latt'", "Did you mean 'latte'?", "pab246"]),
        ({"ranges": 3}, ["ranges maps kinds to integers or names a preset, got 3"]),
        ({"ranges": {"spatial": 0}}, ["ranges['spatial']=0", "an integer of at least 1"]),
        ({"ranges": {"cross": -2}}, ["ranges['cross']=-2", "an integer of at least 1"]),
        ({"ranges": {"cross": 2.0}}, ["ranges['cross']=2.0", "an integer of at least 1"]),
        ({"ranges": {"cross": True}}, ["ranges['cross']=True", "an integer of at least 1"]),
        ({"ranges": {"cross": "2"}}, ["ranges['cross']='2'", "an integer of at least 1"]),
        ({"window": (0.8, 0.2)}, ["window=(0.8, 0.2) is reversed"]),
        ({"window": (800, 100)}, ["window=(800, 100) is reversed"]),
        ({"window": (0.5, 0.5)}, ["is reversed or empty"]),
        ({"window": (0.1, 1.5)}, ["lie in [0, 1]", "use integers for timesteps"]),
        ({"window": (-0.1, 0.5)}, ["lie in [0, 1]"]),
        ({"window": (-5, 500)}, ["timestep values are not negative"]),
        ({"window": (0, 0.5)}, ["both bounds are floats", "or both are integers"]),
        ({"window": (False, True)}, ["both bounds are floats"]),
        ({"window": ("0.1", "0.5")}, ["both bounds are floats"]),
        ({"window": (float("nan"), 0.5)}, ["lie in [0, 1]"]),
        ({"window": 0.5}, ["window is a pair (low, high), got 0.5"]),
        ({"window": (0.1, 0.5, 0.9)}, ["window is a pair"]),
        ({"predict": 3}, ["predict=3", "0 (repeat), 1 (linear) or 2 (quadratic)"]),
        ({"predict": True}, ["predict=True"]),
        ({"predict": {"crosss": 1}}, ["unknown kind 'crosss'", "Did you mean 'cross'?"]),
        ({"predict": {"cross": -1}}, ["predict['cross']=-1"]),
        ({"predict_in": "steps"}, ["predict_in='steps'", "Did you mean 'step'?", "timestep"]),
        ({"coalesce": 1}, ["coalesce is True or False, got 1"]),
        ({"cut": "gate"}, ["cut='gate' is not a choice", "Did you mean 'gated'?"]),
        ({"on_unsupported": "pass"}, ["on_unsupported='pass'", "passthrough, raise"]),
        ({"inner": 3}, ["inner is the name of a backend or a callable, got 3"]),
        ({"axes": {"x": 3}}, ['such as {"x": "b c t h w"}']),
        ({"axes": "b c t h w"}, ["axes maps input names to axes"]),
        ({"plan": 3}, ["or what tune returned; got 3"]),
        (
            {"plan": "p.json", "ranges": {}, "predict": 1},
            ["plan replaces ranges, predict", "the one or the other"],
        ),
    ],
    ids=str,
)
def test_a_wrong_option_is_named_with_what_was_found_and_what_is_accepted(
    given: dict[str, Any], words: list[str]
) -> None:
    message = refused(given)
    for word in words:
        assert word in message


def test_a_dump_that_is_no_path_is_refused() -> None:
    assert "dump" in refused({"dump": 3})


def test_an_unknown_mode_is_refused() -> None:
    assert "mode" in refused({"mode": "reduce-overheads"})


def test_a_near_miss_is_offered_only_where_there_is_one() -> None:
    assert near_miss("spacial", KINDS).startswith(" Did you mean 'spatial'?")
    assert near_miss("zzz", ["a", "b"]) == " Known: a, b."
    assert "Did you mean" not in near_miss("zzz", KINDS)


def test_every_option_is_described() -> None:
    described = Options.__doc__ or ""
    assert all(f"{name}:" in described for name in Options.__dataclass_fields__)


def test_kinds_without_a_range_are_computed_at_every_step() -> None:
    site = Site("a", "mlp", "mlp", "", (), (), (), (), 0, 0, "")
    plan = parse_options({}).make_plan()
    assert not plan.may_reuse(site)
    assert plan.range_of(site) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_parallel": 0}, "from 1 up"),
        ({"sequence_parallel": True}, "from 1 up"),
        ({"mesh": 2}, "no DeviceMesh"),
        ({"shard": "t"}, "give mesh or sequence_parallel; to comm, num_ranks"),
        ({"sequence_parallel": 2, "shard": "x"}, "not a choice"),
        ({"shard": "auto", "batch_parallel": 2}, "'auto' finds how many ranks share"),
        ({"shard": "auto", "cache_budget": 2**30}, "leave cache_budget out"),
        ({"shard": AutoSplit(calls=3)}, "calls is 1, or 2"),
        ({"ring_parallel": 2}, "give mesh or sequence_parallel"),
        ({"sequence_parallel": 6, "ring_parallel": 4}, "give a divisor of 6"),
        ({"sequence_parallel": 4, "ring_parallel": 1}, "from 2 up"),
        ({"batch_parallel": 0}, "batch_parallel=0: .* from 1 up"),
        ({"batch_mesh": 2}, "batch_mesh=2 is no DeviceMesh"),
        ({"batch_parallel": 2, "shard": "t"}, "which ranks share them"),
    ],
)
def test_options_of_parallelism_that_make_no_sense_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        parse_options(options)


def test_ranks_without_a_process_group_are_an_error_that_says_how_to_start_them() -> None:
    with pytest.raises(RanksError, match="sequence_parallel=2 needs as many processes"):
        peers_of(None, 2)
    with pytest.raises(RanksError, match="batch_parallel=3 needs as many processes"):
        peers_of(batch_parallel=3)
    assert peers_of(None, 1) is None and peers_of() is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"cut": "branch"}, False),
        ({"cut": "branch", "cache_budget": "1GiB"}, True),
        ({"cut": "gated", "cache_budget": "1GiB", "coalesce": False}, False),
        ({"cut": "attention", "cache_budget": "1GiB"}, False),
        ({"ranges": "pab246", "cache_budget": "1GiB"}, False),
        ({"ranges": "linear3", "cache_budget": "1GiB"}, True),
    ],
)
def test_with_a_budget_sums_take_the_place_of_single_sites(
    given: dict[str, Any], expected: bool
) -> None:
    assert parse_options(given).coalesce is expected


def test_auto_is_a_dtype_only_where_the_budget_is_short() -> None:
    assert parse_options({"cache_dtype": "auto"}).keeping.dtype is None
    assert parse_options({"cache_dtype": "auto"}).keeping.narrows
    with pytest.raises(OptionError, match="cache_dtype='auto' and cache_offload"):
        parse_options({"cache_dtype": "auto", "cache_offload": True})


def test_the_default_budget_is_half_of_what_is_free_on_one_rank() -> None:
    assert parse_options({}).keeping.budget == 0.5
    assert parse_options({"cache_offload": True}).keeping.budget is None
    assert parse_options({"sequence_parallel": 2}).keeping.budget is None
