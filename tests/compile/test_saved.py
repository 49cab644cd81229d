"""What was compiled is saved to a file, and another process compiles nothing with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx

import pab_compile
from pab_compile import PabError
from pab_compile.compile import saved, trace_store
from pab_compile.compile.trace_store import stored_trace


def small() -> fx.GraphModule:
    """A graph as Dynamo makes them."""
    graph = fx.Graph()
    graph.output((graph.call_function(torch.mul, (graph.placeholder("x"), 2.0)),))
    return fx.GraphModule(torch.nn.Module(), graph)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A saved file with one graph, made in a cache that is empty again."""
    monkeypatch.setattr(trace_store, "_used", {})
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: None)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "first"))
    stored_trace(small(), [torch.ones(3)])
    path = tmp_path / "out" / "saved.zip"
    assert pab_compile.save_compiled(path) == saved.Saved(1, 0)
    assert [each.name for each in path.parent.iterdir()] == ["saved.zip"]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "second"))
    return path


def rewritten(path: Path, **changes: Any) -> Path:
    """The file with other facts."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    facts = json.loads(parts["facts.json"]) | changes
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (parts | {"facts.json": json.dumps(facts).encode()}).items():
            archive.writestr(name, content)
    return path


def test_another_process_reads_what_was_traced(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def traced_again(*_: Any) -> fx.GraphModule:
        raise AssertionError("it was traced again")

    monkeypatch.setattr(trace_store, "trace", traced_again)
    with pytest.raises(AssertionError, match="traced again"):
        stored_trace(small(), [torch.ones(3)])
    assert pab_compile.load_compiled(file) == saved.Saved(1, 0)
    found = stored_trace(small(), [torch.ones(3)])
    assert torch.equal(found(torch.ones(3))[0], torch.full((3,), 2.0))


def test_pieces_that_are_still_compiled_are_waited_for(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(saved, "wait_for_background", lambda: order.append("waited"))
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: order.append("saved"))
    stored_trace(small(), [torch.ones(3)])
    pab_compile.save_compiled(file)
    assert order == ["waited", "saved"]


def test_torchs_artifacts_are_in_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[bytes] = []
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"kernels", None))
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", loaded.append)
    assert pab_compile.save_compiled(file).artifact_bytes == 7
    pab_compile.load_compiled(file)
    assert loaded == [b"kernels"]


@pytest.mark.parametrize(
    "changes", [{"torch": "9.9"}, {"machine": "abacus"}, {"python": "2.7"}, {"devices": "x"}]
)
def test_what_other_versions_made_is_refused(file: Path, changes: dict[str, str]) -> None:
    ((name, value),) = changes.items()
    with pytest.raises(PabError, match=f"{name} {value} "):
        pab_compile.load_compiled(rewritten(file, **changes))


def test_other_files_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(PabError, match="does not exist"):
        pab_compile.load_compiled(tmp_path / "none")
    with pytest.raises(PabError, match="another format"):
        pab_compile.load_compiled(rewritten(file, format="x/1"))
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(PabError, match="is damaged"):
        pab_compile.load_compiled(file)


def test_a_name_in_the_file_leads_nowhere_else(file: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("traces/../../../outside.trace", b"x")
        archive.writestr("traces/other.txt", b"x")
    pab_compile.load_compiled(file)
    assert not list(tmp_path.rglob("other.txt"))
    (outside,) = tmp_path.rglob("outside.trace")
    assert outside.parent == tmp_path / "second" / "pab_compile"


def test_nothing_is_saved_where_nothing_was_compiled_or_kept(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_store, "_used", {})
    with pytest.raises(PabError, match="Nothing was compiled in this process"):
        pab_compile.save_compiled(tmp_path / "a")
    with (
        torch._inductor.config.patch(force_disable_caches=True),
        pytest.raises(PabError, match="switched off"),
    ):
        pab_compile.load_compiled(file)


def test_ctrl_c_leaves_the_old_file_and_nothing_else(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"new", None))

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(zipfile.ZipFile, "writestr", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pab_compile.save_compiled(file)
    assert file.read_bytes() == before
    assert [each.name for each in file.parent.iterdir()] == [file.name]


PROCESS = """
import json, sys
import torch, pab_compile
from helpers.captured import SmallDiT
from pab_compile.compile import trace_store
verb, path = sys.argv[1:]
if verb == "load":
    pab_compile.load_compiled(path)
traced, trace = [], trace_store.trace
trace_store.trace = lambda *given: (traced.append(1), trace(*given))[1]
torch.manual_seed(0)
model = torch.compile(SmallDiT(1).requires_grad_(False), backend="pab", dynamic=False)
x = torch.ones(2, 4, 3, 2, 5)
with torch.no_grad(), pab_compile.generation(timesteps=[1.0, 0.5]):
    for t in (1.0, 0.5):
        y = model(x, torch.full((2,), t), torch.ones(2, 7, 4))
if verb == "save":
    pab_compile.save_compiled(path)
counted = torch._dynamo.utils.counters["inductor"]
print(json.dumps([len(traced), counted["fxgraph_cache_miss"], counted["fxgraph_cache_hit"]]))
"""


@pytest.mark.long
@pytest.mark.slow
def test_a_second_machine_compiles_nothing(tmp_path: Path) -> None:
    counts = {}
    for verb in ("save", "load"):
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / verb)}
        here = str(Path(__file__).parents[1])
        environment["PYTHONPATH"] = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-c", PROCESS, verb, str(tmp_path / "saved.zip")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        counts[verb] = json.loads(done.stdout.splitlines()[-1])
    traced, missed, _ = counts["save"]
    assert traced > 0 < missed
    assert counts["load"][:2] == [0, 0]
    assert counts["load"][2] > 0
