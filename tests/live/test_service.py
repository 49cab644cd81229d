"""A service: several threads, and requests that differ in size, prompt length and level."""

from __future__ import annotations

import pytest

import pab_compile
from helpers.latte import assert_different, assert_same
from helpers.service import expected, generate, narrow_wan, requests, serve, watched


@pytest.mark.sample("8")
@pytest.mark.parametrize("number", [8, 40])
def test_every_request_is_as_if_alone_and_each_graph_is_compiled_once(number: int) -> None:
    model, asked = narrow_wan(1), requests(number)
    wanted = [expected(model, request) for request in asked]
    plain = generate(lambda _, **inputs: model(**inputs)[0], asked[0])
    assert_different(plain[-1], wanted[0][-1])
    handle = pab_compile.enable(model, inner="eager")
    with watched() as compiled:
        given = serve(model, handle, asked, num_threads=3)
    handle.disable()
    for mine, theirs in zip(given, wanted, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert_same(one, other)
    assert all(len(graph.captures) == 1 for graph in compiled.graphs.values())
    # Which graph of Dynamo gets a size depends on the order in which the threads come.
    assert max(len(graph.served) for graph in compiled.graphs.values()) > number // 4
