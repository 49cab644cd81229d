"""What captures traced, on disk: a second process reads it, and a bad file is not used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx

from pab_compile.compile import trace_store
from pab_compile.compile.trace_store import stored_trace
from pab_compile.passes.graph.printer import format_graph


def small(scale: float = 2.0) -> fx.GraphModule:
    """A graph as Dynamo makes them."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(torch.mul, (x, scale)),))
    return fx.GraphModule(torch.nn.Module(), graph)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[fx.GraphModule]]:
    """A folder of its own, and a list that gets every graph that was traced."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    found: list[fx.GraphModule] = []
    trace = trace_store.trace

    def counting(graph: fx.GraphModule, tensors: Any) -> fx.GraphModule:
        found.append(trace(graph, tensors))
        return found[-1]

    monkeypatch.setattr(trace_store, "trace", counting)
    yield found


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the log warns of."""
    said: list[str] = []
    monkeypatch.setattr(trace_store._log, "warning", lambda words, *parts: said.append(words))
    return said


def test_a_graph_is_traced_once(traced: list[fx.GraphModule], warnings: list[str]) -> None:
    first, again = (stored_trace(small(), [torch.ones(3)]) for _ in range(2))
    assert len(traced) == 1
    assert first is not again
    assert format_graph(first) == format_graph(again)
    assert torch.equal(again(torch.ones(3))[0], torch.full((3,), 2.0))
    assert not warnings


@pytest.mark.parametrize(
    "other", ["constant", "size", "dtype", "default dtype", "autocast", "sources", "torch"]
)
def test_whatever_a_trace_depends_on_has_a_file_of_its_own(
    traced: list[fx.GraphModule], monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    stored_trace(small(), [torch.ones(3)])
    graph, tensor = small(3.0 if other == "constant" else 2.0), torch.ones(3)
    if other == "size":
        tensor = torch.ones(4)
    if other == "dtype":
        tensor = torch.ones(3, dtype=torch.bfloat16)
    if other == "torch":
        monkeypatch.setattr(torch, "__version__", "9.9")
        trace_store._versions.cache_clear()
    if other == "sources":
        monkeypatch.setattr(Path, "rglob", lambda *_: [Path(__file__)])
        trace_store._versions.cache_clear()
    if other == "default dtype":
        monkeypatch.setattr(torch, "get_default_dtype", lambda: torch.float64)
    try:
        with torch.autocast("cpu", enabled=other == "autocast"):
            stored_trace(graph, [tensor])
    finally:
        trace_store._versions.cache_clear()
    assert len(traced) == 2


@pytest.mark.parametrize("damage", ["cut off", "changed", "another's", "no file", "empty"])
def test_a_bad_file_is_not_used(
    traced: list[fx.GraphModule], warnings: list[str], tmp_path: Path, damage: str
) -> None:
    stored_trace(small(3.0), [torch.ones(3)])
    (other,) = tmp_path.glob("pab_compile/*.trace")
    stored_trace(small(), [torch.ones(3)])
    (path,) = {*tmp_path.glob("pab_compile/*.trace")} - {other}
    data = path.read_bytes()
    if damage == "cut off":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "changed":
        path.write_bytes(data[:-8] + bytes(8))
    elif damage == "another's":
        path.write_bytes(other.read_bytes())
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        path.mkdir()
    again = stored_trace(small(), [torch.ones(3)])
    assert len(traced) == 3
    assert torch.equal(again(torch.ones(3))[0], torch.full((3,), 2.0))
    assert len(warnings) == 1
    assert warnings[0].startswith("traced anew, since ")


def test_without_inductors_cache_nothing_is_written(
    traced: list[fx.GraphModule], tmp_path: Path
) -> None:
    with torch._inductor.config.patch(fx_graph_cache=False):
        for _ in range(2):
            stored_trace(small(), [torch.ones(3)])
    assert len(traced) == 2
    assert not list(tmp_path.glob("pab_compile/*"))
