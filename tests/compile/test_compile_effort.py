"""What a compilation leaves out: counted, since seconds differ from machine to machine."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import fx

from helpers.captured import SmallDiT, usual
from pab_compile import backend
from pab_compile.compile.collecting import collector_paused


def compile_small(monkeypatch: pytest.MonkeyPatch, before: Any, after: Any) -> None:
    """Compile a model, and call functions before and after the passes."""
    compile_program = backend.compile_program

    def watched(*args: Any) -> Any:
        before()
        try:
            return compile_program(*args)
        finally:
            after()

    monkeypatch.setattr(backend, "compile_program", watched)
    model = torch.compile(SmallDiT(3), backend="pab", options={"inner": "eager"})
    with torch.no_grad():
        model(*(usual(name) for name in ("latents", "timestep", "prompt")))


def test_no_python_code_is_written_of_graphs_that_do_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[int] = []
    write = fx.Graph.python_code

    def counting(graph: fx.Graph, *args: Any, **kwargs: Any) -> Any:
        written.append(len(graph.nodes))
        return write(graph, *args, **kwargs)

    begun: list[int] = []
    found: list[list[int]] = []
    monkeypatch.setattr(fx.Graph, "python_code", counting)
    compile_small(
        monkeypatch,
        lambda: begun.append(len(written)),
        lambda: found.append(written[begun[-1] :]),
    )
    assert found == [[]]
    assert len(written) > begun[0], "the pieces ran"


def test_the_garbage_collector_pauses_while_passes_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    compile_small(monkeypatch, lambda: seen.append(gc.isenabled()), lambda: None)
    assert seen == [False]
    assert gc.isenabled()


def test_a_pause_ends_with_an_error_and_leaves_a_collector_off_that_was_off() -> None:
    with pytest.raises(KeyError), collector_paused():
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
