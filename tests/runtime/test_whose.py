"""``stats``, ``explain`` and ``observe`` find the run, whatever was compiled and is named."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pab_compile
from helpers.eager_code import (
    NUM_STEPS,
    RANGES,
    WIDTH,
    Attention,
    Dit,
    as_oracle,
    calls,
    compiled,
    make,
)
from helpers.latte import assert_same
from pab_compile.errors import ObservationError, PabError

OPTIONS: dict[str, Any] = {"ranges": RANGES, "window": (0.0, 1.0), "inner": "eager"}
FULL = {"full": 3, "cross": 4}


def by_pab(function: Any) -> Any:
    return torch.compile(function, backend="pab", options=OPTIONS)


def run(call: Callable[..., Any]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [call(*inputs) for inputs in calls()]


class Pipe:
    """Holds a model, as pipelines do."""

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer
        self.scheduler = SimpleNamespace()

    @property
    def components(self) -> dict[str, Any]:
        return {"transformer": self.transformer, "scheduler": self.scheduler}

    def denoise(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return self.transformer(x, t, context)


def a_module(model: Dit) -> tuple[Any, list[Any]]:
    whole = by_pab(model)
    return whole, [whole, model, Pipe(whole)]


def in_place(model: Dit) -> tuple[Any, list[Any]]:
    model.compile(backend="pab", options=OPTIONS)
    return model, [model, Pipe(model)]


def a_forward(model: Dit) -> tuple[Any, list[Any]]:
    forward = by_pab(model.forward)
    return forward, [forward, model]


def a_replaced_forward(model: Dit) -> tuple[Any, list[Any]]:
    model.forward = by_pab(model.forward)  # type: ignore[method-assign]
    return model, [model, model.forward, Pipe(model)]


def a_function(model: Dit) -> tuple[Any, list[Any]]:
    def call(x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return model(x, timestep, context)

    function = by_pab(call)
    return function, [function, call, model]


def a_method(model: Dit) -> tuple[Any, list[Any]]:
    pipe = Pipe(model)
    denoise = by_pab(pipe.denoise)
    return denoise, [denoise, pipe, model]


def twice(model: Dit) -> tuple[Any, list[Any]]:
    whole = by_pab(by_pab(model))
    return whole, [whole, model]


WAYS = {
    f.__name__: f
    for f in (a_module, in_place, a_forward, a_replaced_forward, a_function, a_method, twice)
}


@pytest.mark.sample("in_place")
@pytest.mark.parametrize("way", WAYS)
def test_the_run_is_found_whatever_was_compiled(way: str) -> None:
    other = compiled(make("plain"), {"cross": 2})
    call, names = WAYS[way](make("plain"))
    run(call)
    run(other)  # a later run, of another model with the same code
    for named in names:
        assert pab_compile.stats(named).reused == FULL
    for named in names:
        assert pab_compile.explain(named).counts() == {"full": 1, "cross": 1}
    for named in names:
        assert pab_compile.observe(lambda: run(call), model=named).sites


@pytest.mark.sample("a_module", "a_method")
@pytest.mark.parametrize("way", WAYS)
def test_another_model_with_the_same_code_has_no_run(way: str) -> None:
    call, _ = WAYS[way](make("plain"))
    run(call)
    other = make("plain")
    with pytest.raises(PabError, match="has not completed a step"):
        pab_compile.stats(other)
    with pytest.raises(ObservationError, match="Nothing was observed"):
        pab_compile.observe(lambda: run(call), model=other)


class Scales(Attention):
    """A weight with a tensor beside it that is no parameter, as in NF4."""

    def __init__(self, every: int) -> None:
        super().__init__(every)
        self.back.weight.scale = torch.full((WIDTH, 1), 0.5)  # type: ignore[attr-defined]

    def compute(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        scaled = self.back.weight * self.back.weight.scale  # type: ignore[attr-defined]
        return F.linear(super().compute(x, y), scaled)


@pytest.mark.sample("twice", "a_forward")
@pytest.mark.parametrize("way", WAYS)
def test_weights_with_parts_that_are_no_parameters(way: str) -> None:
    torch.manual_seed(0)
    call, names = WAYS[way](Dit(Scales).eval().requires_grad_(False))
    run(call)
    for named in names:
        assert pab_compile.stats(named).reused == FULL
    for named in names:
        assert pab_compile.observe(lambda: run(call), model=named).sites


def test_models_that_share_some_weights_have_runs_of_their_own() -> None:
    first, second = make("plain"), make("plain")
    second.patch = first.patch
    one, two = by_pab(first), by_pab(second)
    run(one)
    with pytest.raises(PabError, match="has not completed a step"):
        pab_compile.stats(two)
    with torch.no_grad():
        two(*next(calls()))
    assert (pab_compile.stats(one).steps, pab_compile.stats(two).steps) == (NUM_STEPS, 1)


class Skips(Dit):
    """The second half of the generation uses other weights as well."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Linear(WIDTH, WIDTH)
        self.is_late = False

    def block(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return super().block(self.late(x) if self.is_late else x, context)


def test_calls_that_use_different_weights_are_runs_of_one_model() -> None:
    torch.manual_seed(0)
    model = Skips().eval().requires_grad_(False)
    whole = by_pab(model)
    run(whole)
    model.is_late = True
    run(whole)
    run(whole)
    assert pab_compile.stats(whole).reused == FULL
    assert pab_compile.stats(model).steps == NUM_STEPS


def test_a_result_of_torch_compile_that_is_not_used_is_named() -> None:
    model = make("plain")
    whole = by_pab(model)
    run(model)
    with pytest.raises(PabError, match=r"result of torch\.compile was not used"):
        pab_compile.stats(whole)
    with pytest.raises(PabError, match=r"call what it returns"):
        pab_compile.stats(model)


def test_other_options_are_named() -> None:
    model = make("plain")
    run(by_pab(model))
    with pytest.raises(PabError, match="Another compilation of it ran"):
        pab_compile.stats(compiled(model, {"cross": 2}))


def test_a_switch_that_disables_compilation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = by_pab(make("plain"))
    with torch.compiler.set_stance("force_eager"):
        run(whole)
        with pytest.raises(PabError, match=r"switched off: .*force_eager"):
            pab_compile.stats(whole)
        with pytest.raises(ObservationError, match=r"switched off: .*force_eager"):
            pab_compile.observe(lambda: run(whole))
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    uncompiled = by_pab(make("plain"))
    run(uncompiled)
    with pytest.raises(PabError, match="TORCHDYNAMO_DISABLE"):
        pab_compile.explain(uncompiled)


@torch.compiler.disable
def exchange(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tensors


class Between(Attention):
    """Attention between two functions that Dynamo may not trace: its graph reads no weight."""

    def compute(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        q, k, v = exchange(self.query(x)[:, None], self.key(y)[:, None], self.value(y)[:, None])
        (out,) = exchange(F.scaled_dot_product_attention(q, k, v)[:, 0])
        return self.back(out)


@pytest.mark.sample("a_replaced_forward")
@pytest.mark.parametrize("way", WAYS)
def test_a_first_graph_with_sites_and_without_weights_reuses(way: str) -> None:
    torch.manual_seed(0)
    model = Dit(Between).eval().requires_grad_(False)
    call, names = WAYS[way](model)
    actual = []
    with torch.no_grad():
        for inputs in calls():
            actual.append(call(*inputs))
    stats = pab_compile.stats(names[0])
    assert stats.steps == NUM_STEPS
    assert stats.reused["full"] == FULL["full"]
    torch._dynamo.reset()
    torch.manual_seed(0)
    twin = Dit(Between).eval().requires_grad_(False)
    cross = stats.reused["cross"]
    for step, inputs in enumerate(calls()):
        with as_oracle(twin, step), torch.no_grad():
            if not cross:  # tokens of its graph come from Python code
                twin.cross.step = None
            assert_same(actual[step], twin(*inputs))
    assert pab_compile.observe(lambda: run(call), model=names[0]).sites


def test_two_models_whose_first_graphs_read_no_weight_are_told_apart() -> None:
    found, expected = [], []
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(Dit(Between).eval().requires_grad_(False))
    pair = [by_pab(model) for model in models]
    torch.manual_seed(0)
    with torch.no_grad():
        for inputs in calls():
            found.append([one(*inputs) for one in pair])
    for one in pair:
        assert pab_compile.stats(one).steps == NUM_STEPS
        assert pab_compile.stats(one).lanes == 1
    pab_compile.reset()
    for one in pair:
        expected.append(run(one))
    for step in range(NUM_STEPS):
        for number in (0, 1):
            assert_same(found[step][number], expected[number][step])
