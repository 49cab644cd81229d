"""Precompile: requests of the sizes that were given compile nothing."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
import torch

import pab_compile
from helpers.eager_code import WIDTH, Dit
from helpers.latte import assert_same
from helpers.service import Request, expected, generate, narrow_wan, watched
from pab_compile.compile.progress import bar
from pab_compile.errors import OptionError, PabError

SIZES = ((8, 8, 7), (8, 12, 9), (12, 10, 9))


def example(height: int, width: int, words: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.zeros(1, 4, 2, height, width),
        "timestep": torch.zeros(1),
        "encoder_hidden_states": torch.zeros(1, words, 16),
        "return_dict": False,
    }


def test_requests_of_these_sizes_compile_nothing() -> None:
    model = narrow_wan(1)
    handle = pab_compile.enable(model, "quality", inner="eager")
    with watched() as ahead:
        pab_compile.precompile(handle, [example(*size) for size in SIZES])
    (graph,) = ahead.graphs.values()  # what differs was left open at once
    assert len(graph.captures) == ahead.num_invented == 1
    assert handle.plan == "quality"
    with watched() as later, torch._dynamo.config.patch(error_on_recompile=True):
        for size, level in zip(SIZES, ("quality", "fast", "balanced"), strict=True):
            request = Request(*size, level, seed=1, is_guided=True, stop=None)
            with handle.use(level):
                actual = generate(lambda _, **inputs: model(**inputs)[0], request)
            assert_same(torch.stack(actual), torch.stack(expected(model, request)))
    assert not later.graphs
    assert later.num_pieces == 0
    handle.disable()


def small(tokens: int) -> dict[str, torch.Tensor]:
    x, context = torch.zeros(1, tokens, 4), torch.zeros(1, 5, WIDTH)
    return {"x": x, "timestep": torch.ones(1), "context": context}


def test_an_example_may_be_a_function_and_each_size_stays_alone_if_asked() -> None:
    model = torch.compile(
        Dit().requires_grad_(False), backend="pab", options={"inner": "eager"}, dynamic=False
    )
    with watched() as ahead:
        pab_compile.precompile(model, [small(6), small(7), lambda: model(**small(8))])
    assert [graph.captures for graph in ahead.graphs.values()] == [
        [f"1x{tokens}x4, 1x5x{WIDTH}"] for tokens in (6, 7, 8)
    ]
    with watched() as later, torch.no_grad():
        for tokens in (8, 7, 6):
            model(**small(tokens))
    assert not later.graphs


@pytest.mark.parametrize("wrong", [[], [3], ["a pipeline"]])
def test_examples_that_are_none_are_refused(wrong: list[Any]) -> None:
    handle = pab_compile.enable(Dit(), inner="eager")
    with pytest.raises(OptionError, match="example"):
        pab_compile.precompile(handle, wrong)
    handle.disable()
    with pytest.raises(PabError, match="disabled"):
        pab_compile.precompile(handle, [small(6)])


def test_a_model_that_is_not_compiled_is_refused() -> None:
    with pytest.raises(PabError, match="not compiled"):
        pab_compile.precompile(Dit(), [small(6)])


def test_a_bar_counts_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with bar("sizes", 3) as advance:
        advance()
    assert "sizes" in terminal.getvalue()
    assert "1/3" in terminal.getvalue()
