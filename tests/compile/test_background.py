"""``warm="background"``: pieces run uncompiled until a thread has compiled them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import LatteTransformer3DModel
from torch import fx

import pab_compile
from helpers.latte import Loop, assert_different, assert_same, calls_of, ddim_timesteps, tiny_latte
from pab_compile import OptionError
from pab_compile.compile import background
from pab_compile.compile.lower import PieceCompiler
from pab_compile.compile.progress import CompileProgress
from pab_compile.passes.graph.tracing import module_of

pytestmark = pytest.mark.compiled_once
NUM_STEPS = 6
OPTIONS = {"ranges": "linear3", "window": (0.0, 1.0)}


class Jobs(list[Callable[[], None]]):
    """What waits for the background thread: nothing is compiled until ``finish``."""

    submit = list.append

    def finish(self) -> None:
        """Run all jobs, in the order of their submission."""
        while self:
            self.pop(0)()


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """In the place of the thread."""
    found = Jobs()
    monkeypatch.setattr(background, "_worker", found)
    return found


@functools.cache
def model() -> LatteTransformer3DModel:
    """A model that all tests share."""
    return tiny_latte(depth=1)


@functools.cache
def expected(inner: str) -> torch.Tensor:
    """What a generation gives with this inner compiler."""
    options = {**OPTIONS, "inner": inner}
    return loop_of(torch.compile(model(), backend="pab", options=options)).run()


def loop_of(compiled: Callable[..., Any]) -> Loop:
    """A generation."""
    return Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS))


def warming() -> Any:
    """The model, compiled in the background."""
    torch.compiler.reset()
    options = {**OPTIONS, "warm": "background"}
    return torch.compile(model(), backend="pab", options=options)


def is_noted(compiled: Any) -> bool:
    """Whether the statistics say that pieces ran uncompiled."""
    return any("background" in note for note in pab_compile.stats(compiled).notes)


def test_a_generation_runs_uncompiled_and_the_next_one_compiled(jobs: Jobs) -> None:
    compiled = warming()
    assert torch.equal(loop_of(compiled).run(), expected("eager"))
    assert is_noted(compiled) and pab_compile.stats(compiled).compile_seconds == 0.0
    num_pieces = len(jobs)
    assert num_pieces == pab_compile.stats(compiled).num_pieces
    jobs.finish()
    assert torch.equal(loop_of(compiled).run(), expected("inductor"))
    after = pab_compile.stats(compiled)
    assert not is_noted(compiled) and after.compile_seconds > 0.0 and not jobs
    assert after.num_pieces == num_pieces and after.reused["spatial"] > 0


def test_the_graph_may_change_before_it_first_runs_uncompiled(jobs: Jobs) -> None:
    graph = fx.Graph()
    graph.output((graph.call_function(torch.neg, (graph.placeholder("x"),)),))
    piece = module_of(torch.nn.Module(), graph)
    function = PieceCompiler("inductor", None, CompileProgress(), True).compile(piece, "piece")
    for node in graph.find_nodes(op="call_function", target=torch.neg):
        node.target = torch.abs  # as an inner compiler rewrites the graph that it is given
    piece.recompile()
    assert torch.equal(function(torch.ones(2))[0], torch.full((2,), -1.0))
    assert jobs


@pytest.mark.sample("3")
@pytest.mark.parametrize("switched_at", [1, 3, 4])
def test_pieces_may_be_ready_at_any_step(jobs: Jobs, switched_at: int) -> None:
    compiled = warming()
    loop = loop_of(compiled)
    for step in loop.steps():
        if step == switched_at:
            jobs.finish()
    jobs.finish()
    assert_same(torch.stack(loop.predictions), expected("inductor"))
    assert_different(torch.stack(loop.predictions), loop_of(model()).run())
    assert pab_compile.stats(compiled).reused["spatial"] > 0


def test_pieces_may_be_ready_one_by_one(jobs: Jobs) -> None:
    compiled = warming()
    loop = loop_of(compiled)
    for _ in loop.steps():
        if jobs:
            jobs.pop(0)()
    assert_same(torch.stack(loop.predictions), expected("inductor"))


def test_the_thread_compiles_while_the_model_runs() -> None:
    compiled = warming()
    assert_same(loop_of(compiled).run(), expected("inductor"))
    background.wait_for_background()
    assert torch.equal(loop_of(compiled).run(), expected("inductor"))
    assert not is_noted(compiled)


def test_precompile_waits() -> None:
    compiled = warming()
    pab_compile.precompile(compiled, [lambda: loop_of(compiled).run()])
    assert torch.equal(loop_of(compiled).run(), expected("inductor"))
    assert not is_noted(compiled)


def test_what_the_thread_raises_is_raised_at_the_next_call(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(PieceCompiler, "_run_inductor", fail)
    compiled = warming()
    loop_of(compiled).run()
    jobs.finish()
    with pytest.raises(RuntimeError, match="no compiler"):
        loop_of(compiled).run()


@pytest.fixture(autouse=True)
def nothing_waits() -> Iterator[None]:
    """The thread has nothing to do when the next test begins."""
    yield
    background.wait_for_background()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"warm": "foreground"}, "warm='foreground' is not a choice"),
        ({"warm": "background", "inner": "eager"}, "inner='eager' is another compiler"),
        ({"warm": "background", "mode": "reduce-overhead"}, "CUDA graphs"),
        ({"warm": "background", "sequence_parallel": 2}, "leave warm out"),
    ],
)
def test_what_cannot_wait_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        pab_compile.enable(model(), **options)
