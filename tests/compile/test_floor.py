"""A model that is refused and could be run with whole outputs is told so, and no other model is."""

from __future__ import annotations

import ast
from typing import Any

import pytest
import torch

import pab_compile
import pab_compile.passes.pipeline as pipeline
from helpers.eager_code import calls, make
from helpers.latte import assert_different, compiled_pab
from helpers.refused import REFUSED, WITHOUT_FLOOR, Case
from pab_compile import InvariantError, PabError, UnsupportedModelError
from pab_compile.passes.graph import capture as capturing

NUM_STEPS = 6
OFFER = "Or reuse the model's whole output"


def refused(run: Any) -> str:
    """The words of an error about a model."""
    with pytest.raises((UnsupportedModelError, InvariantError)) as caught:
        run()
    assert type(caught.value) in (UnsupportedModelError, InvariantError)
    return str(caught.value)


def follow(message: str, **options: Any) -> dict[str, Any]:
    """The options that an error offers, as a user copies them."""
    assert message.count(OFFER) == 1
    offered = message[message.index(OFFER) :]
    assert offered.endswith("}.")
    return {**ast.literal_eval(offered[offered.index("{") : -1]), **options}


def check_that_it_runs(model: torch.nn.Module, inputs: Any, options: dict[str, Any]) -> None:
    """Some steps are computed, and equal eager. The others are not."""
    compiled = compiled_pab(model, **options)
    for step in range(NUM_STEPS):
        given = inputs(step)
        with pab_compile.step(step, NUM_STEPS):
            actual = compiled(**given)
        last = pab_compile.stats(compiled).timeline.calls[-1].states
        assert set(last) in ({"C"}, {"-"}, {"p"})
        if set(last) == {"C"}:
            assert torch.equal(actual, model(**given))
        else:
            assert_different(actual, model(**given))
    stats = pab_compile.stats(compiled)
    assert stats.computed_steps["output"] < NUM_STEPS
    assert stats.reused["output"] > 0


def built(case: Case) -> torch.nn.Module:
    torch.manual_seed(0)
    return case.make().eval().requires_grad_(False)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_is_refused_runs_as_the_error_offers(name: str) -> None:
    case = REFUSED[name]
    model = built(case)
    with case.around():
        stock: Any = torch.compile(model, backend="eager")
        assert torch.equal(stock(**case.inputs(0)), model(**case.inputs(0)))
        plain = compiled_pab(model)
        said = refused(lambda: [plain(**case.inputs(step)) for step in range(2)])
        assert case.said in said
        assert said == refused(lambda: pab_compile.explain(model, **case.inputs(0)))
        check_that_it_runs(model, case.inputs, follow(said))


@pytest.mark.parametrize("name", WITHOUT_FLOOR)
def test_nothing_is_offered_that_would_not_run(name: str) -> None:
    case = WITHOUT_FLOOR[name]
    model = built(case)
    stock: Any = torch.compile(model, backend="eager")
    assert torch.equal(stock(**case.inputs(0)), model(**case.inputs(0)))
    for said in (
        refused(lambda: compiled_pab(model)(**case.inputs(0))),
        refused(lambda: pab_compile.explain(model, **case.inputs(0))),
    ):
        assert case.said in said
        assert "cut" not in said
    with pytest.raises(PabError):
        compiled_pab(model, ranges="linear3", cut="output")(**case.inputs(0))


def test_nothing_is_offered_where_it_is_chosen_already() -> None:
    case = WITHOUT_FLOOR["no timestep"]
    options = {"ranges": "linear3", "cut": "output"}
    assert "cut" not in refused(lambda: compiled_pab(built(case), **options)(**case.inputs(0)))
    case = WITHOUT_FLOOR["writes and cannot be traced"]
    pab_compile.enable(model := built(case), "linear3", cut="output", inner="eager")
    assert "cut" not in refused(lambda: model(**case.inputs(0)))


def test_what_is_enabled_is_offered_the_same() -> None:
    case = REFUSED["no attention"]
    handle = pab_compile.enable(model := built(case), inner="eager")
    options = follow(refused(lambda: model(**case.inputs(0))))
    handle.disable()
    pab_compile.enable(model, options=options, inner="eager")
    assert torch.equal(model(**case.inputs(0)), built(case)(**case.inputs(0)))


def by_name(step: int) -> dict[str, torch.Tensor]:
    """Arguments of the small DiT."""
    given = list(calls())[step]
    return dict(zip(("x", "timestep", "context"), given, strict=True))


def test_a_defect_of_recognition_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Any:
        raise KeyError("split")

    monkeypatch.setattr(pipeline, "find_mixers", fail)
    model = make("plain")
    said = refused(lambda: compiled_pab(model)(**by_name(0)))
    assert "defect of pab_compile" in said
    check_that_it_runs(model, by_name, follow(said))


def test_a_constant_of_the_tracer_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capturing, "inline_calls", lambda graph_module: 0)
    model = make("a plain view of a weight")
    said = refused(lambda: compiled_pab(model)(**by_name(0)))
    assert "tensor of the tracer" in said
    check_that_it_runs(model, by_name, follow(said))


def test_a_warning_offers_it_too() -> None:
    case = REFUSED["no attention"]
    model = built(case)
    passed = compiled_pab(model, on_unsupported="passthrough")
    with pytest.warns(UserWarning, match=OFFER):
        assert torch.equal(passed(**case.inputs(0)), model(**case.inputs(0)))


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield
