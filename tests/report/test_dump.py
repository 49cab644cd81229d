"""Dumps: files, the structured trace as tlparse shows it, and nothing at all when off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NoReturn

import pytest

from pab_compile.options import parse_options
from pab_compile.report.draw import SiteBox
from pab_compile.report.dump import Dumper

BOXES = [SiteBox("blocks.0.attn", "spatial", ("h*w",), 2, 1024)]


def never() -> NoReturn:
    raise AssertionError("something was formatted although dumping is off")


@pytest.fixture(autouse=True)
def _no_dump_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAB_DUMP", raising=False)


def dump_two_passes(dumper: Dumper) -> None:
    text = ["%x = input x\nreturn %x\n"]
    with dumper.watch("capture", lambda: text[0]):
        pass
    with dumper.watch("broadcast", lambda: text[0]):
        text[0] = "%x = input x\n%y = aten.relu(%x)\nreturn %y\n"
    dumper.sites(lambda: {"sites": [{"name": "blocks.0.attn", "range": 2}]}, lambda: BOXES)


def test_nothing_is_formatted_or_written_when_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dumper = Dumper(None)
    assert not dumper.is_on
    with dumper.watch("broadcast", never):
        pass
    dumper.sites(never, never)
    assert list(tmp_path.iterdir()) == []


def test_each_pass_leaves_before_after_and_diff(tmp_path: Path) -> None:
    dump_two_passes(Dumper(str(tmp_path / "out")))
    written = tmp_path / "out" / "graph_0"
    assert sorted(path.name for path in written.iterdir()) == [
        "01_capture.after.txt",
        "01_capture.before.txt",
        "01_capture.diff",
        "02_broadcast.after.txt",
        "02_broadcast.before.txt",
        "02_broadcast.diff",
        "sites.dot",
        "sites.json",
        "sites.svg",
    ]
    assert (written / "01_capture.diff").read_text() == ""
    assert (written / "02_broadcast.before.txt").read_text() == "%x = input x\nreturn %x\n"
    assert "+%y = aten.relu(%x)\n" in (written / "02_broadcast.diff").read_text()
    table = json.loads((written / "sites.json").read_text())
    assert table == {"sites": [{"name": "blocks.0.attn", "range": 2}]}


def test_a_pass_that_fails_leaves_the_graph_it_was_given(tmp_path: Path) -> None:
    dumper = Dumper(tmp_path)
    with pytest.raises(RuntimeError), dumper.watch("broadcast", lambda: "%x = input x\n"):
        raise RuntimeError
    written = [path.name for path in (tmp_path / "graph_0").iterdir()]
    assert written == ["01_broadcast.before.txt"]


def test_every_graph_takes_the_next_free_directory(tmp_path: Path) -> None:
    (tmp_path / "graph_0").mkdir()
    dump_two_passes(Dumper(tmp_path))
    dump_two_passes(Dumper(tmp_path))
    filled = sorted(path.name for path in tmp_path.iterdir() if any(path.iterdir()))
    assert filled == ["graph_1", "graph_2"]


def test_the_environment_turns_it_on_and_the_option_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAB_DUMP", "environment")
    assert parse_options({}).dump == "environment"
    assert parse_options({"dump": "option"}).dump == "option"


@pytest.mark.long
def test_tlparse_shows_the_dump(tmp_path: Path) -> None:
    script = """
        import torch
        from pab_compile.report.draw import SiteBox
        from pab_compile.report.dump import Dumper
        from pab_compile.passes.graph.printer import format_graph

        def backend(graph_module, example_inputs):
            dumper = Dumper(None)
            with dumper.watch("broadcast", lambda: format_graph(graph_module)):
                for node in graph_module.graph.find_nodes(op="call_method", target="sin"):
                    node.target = "cos"
            boxes = [SiteBox("blocks.0.attn", "spatial", (), 2, 1024)]
            dumper.sites(lambda: {"sites": ["blocks.0.attn"]}, lambda: boxes)
            return graph_module

        torch.compile(lambda x: x.sin() + 1, backend=backend)(torch.ones(3))
    """
    trace, report = tmp_path / "trace", tmp_path / "report"
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "TORCH_TRACE": str(trace)},
        cwd=tmp_path,
        check=True,
    )
    (log,) = trace.iterdir()
    tlparse = Path(sys.executable).with_name("tlparse")
    strict = ["--strict", "--strict-compile-id"]  # fails on lines that tlparse does not know
    subprocess.run([tlparse, log, "-o", report, "--no-browser", *strict], check=True)

    shown = {path.name.rpartition("_")[0]: path for path in report.glob("*/pab_*")}
    assert sorted(shown) == [
        "pab_01_broadcast.after",
        "pab_01_broadcast.before",
        "pab_01_broadcast.diff",
        "pab_sites",
        "pab_sites.dot",
        "pab_sites.svg",
    ]
    assert "+%sin = %l_x_.cos()" in shown["pab_01_broadcast.diff"].read_text()
    assert json.loads(shown["pab_sites"].read_text()) == {"sites": ["blocks.0.attn"]}
    index = (report / "index.html").read_text()
    assert all(path.name in index for path in shown.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "trace"]
