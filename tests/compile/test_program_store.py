"""Programs of many sizes: the least recently used are dropped, and nothing changes but the time."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pab_compile
from helpers.any_denoisers import Denoiser
from helpers.latte import Loop, calls_of, ddim_timesteps, draw_latents
from helpers.switching import Compilations
from pab_compile import backend
from pab_compile.compile import lower, program_store

LIMIT = 3


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> list[program_store.ProgramStore]:
    """All stores that are made, with a small limit."""
    made: list[program_store.ProgramStore] = []

    def make() -> program_store.ProgramStore:
        made.append(program_store.ProgramStore(LIMIT))
        return made[-1]

    monkeypatch.setattr(backend, "ProgramStore", make)
    return made


def compiled_denoiser(**options: Any) -> tuple[Denoiser, Any]:
    """A model whose sizes Dynamo leaves open, so that one graph has a program for each."""
    model = Denoiser().eval().requires_grad_(False)
    given = {"inner": lambda piece, _: piece.forward, "cut": "output", **options}
    return model, torch.compile(model, backend="pab", options=given, dynamic=True)


@pytest.mark.parametrize("num_sizes", [6, pytest.param(40, marks=pytest.mark.long)])
def test_a_loop_over_many_sizes_keeps_few_programs_and_stays_exact(
    stores: list[program_store.ProgramStore], monkeypatch: pytest.MonkeyPatch, num_sizes: int
) -> None:
    functions: list[weakref.ref[Any]] = []
    lazily = lower.PieceCompiler._lazily

    def watched(self: lower.PieceCompiler, *args: Any) -> Any:
        function = lazily(self, *args)
        functions.append(weakref.ref(function))
        return function

    monkeypatch.setattr(lower.PieceCompiler, "_lazily", watched)
    model, compiled = compiled_denoiser(ranges="linear3")
    again: dict[int, torch.Tensor] = {}
    for size in (*range(3, 3 + num_sizes), 3):
        latents, timesteps = draw_latents(size=size), ddim_timesteps(5)
        found = Loop(calls_of(compiled), timesteps, latents=latents).run()
        expected = Loop(calls_of(model), timesteps, latents=latents).run()
        assert torch.equal(found[0], expected[0])
        assert torch.equal(again.setdefault(size, found), found)
        assert pab_compile.stats(compiled).reused["output"] == 3
        pab_compile.reset()
    (store,) = stores
    assert len(store) == LIMIT
    gc.collect()
    assert len(functions) > LIMIT
    assert sum(function() is not None for function in functions) == LIMIT


def test_programs_with_large_constants_are_dropped_by_their_bytes() -> None:
    class Program:
        def __init__(self, constant: torch.Tensor) -> None:
            graph_module = torch.nn.Module()
            graph_module.register_buffer("mask", constant)
            self.part = SimpleNamespace(graph_module=graph_module)

    store = program_store.ProgramStore(max_bytes=24)
    shared = torch.zeros(8, dtype=torch.uint8)
    for key in range(9):
        store.add(key, Program(shared))  # type: ignore[arg-type]
    assert len(store) == 9, "they hold 8 bytes together"
    for key in range(10, 14):
        store.add(key, Program(torch.zeros(8, dtype=torch.uint8)))  # type: ignore[arg-type]
    assert [key for key in range(14) if store.find(key)] == [11, 12, 13]
    store.add(14, Program(torch.zeros(99, dtype=torch.uint8)))  # type: ignore[arg-type]
    assert [key for key in range(15) if store.find(key)] == [14]


def test_the_program_of_a_generation_that_runs_is_kept(
    stores: list[program_store.ProgramStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, compiled = compiled_denoiser(ranges="linear3")
    alone = Loop(calls_of(compiled), ddim_timesteps(9)).run()
    pab_compile.reset()
    loop = Loop(calls_of(compiled), ddim_timesteps(9))
    steps = loop.steps()
    for _ in range(4):
        next(steps)
    for size in range(10, 10 + 2 * LIMIT):
        Loop(calls_of(compiled), ddim_timesteps(2), latents=draw_latents(size=size)).run()
    assert len(stores[0]) <= LIMIT + 1
    compilations = Compilations(monkeypatch)
    for _ in steps:
        pass
    assert compilations.count == 0
    assert torch.equal(torch.stack(loop.predictions), alone)
