"""Progress of compilation where it is seen: notebooks and logs."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest

from pab_compile.compile.progress import CompileProgress, bar


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What a notebook shows, in a fake of IPython's two names."""
    shown: list[str] = []
    handle = SimpleNamespace(update=lambda data, raw: shown.append(data["text/plain"]))
    for name, content in {
        "IPython": {},
        "IPython.core.interactiveshell": {
            "InteractiveShell": SimpleNamespace(_instance=SimpleNamespace(kernel=object()))
        },
        "IPython.display": {"display": lambda *_, **__: handle},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    yield shown


def test_a_notebook_shows_pieces_while_they_are_compiled(lines: list[str]) -> None:
    progress = CompileProgress()
    progress.add_pieces(2)
    progress.start()
    progress.finish_piece(0.1)
    progress.stop()
    texts = [line.rpartition(",")[0] for line in lines]
    assert texts == [
        "pab: compiling distinct pieces: 0 of 2",
        "pab: compiling distinct pieces: 1 of 2",
        "",
    ]
    lines.clear()
    with bar("sizes", 2) as advance:
        progress.start()  # the bar around it counts
        advance()
    assert [line.rpartition(",")[0] for line in lines] == ["sizes: 0 of 2", "sizes: 1 of 2", ""]


def test_a_log_says_what_is_compiled_once_and_which_pieces_took_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    log = logging.getLogger("pab_compile.compile.progress")
    monkeypatch.setattr(log, "info", lambda text, *args: said.append(text % args))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    progress = CompileProgress()
    progress.add_pieces(3)
    for seconds in (0.1, 7.0):
        progress.start()
        progress.finish_piece(seconds)
        progress.stop()
    assert said == [
        "3 distinct pieces to compile",
        "2 of 3 pieces compiled; the last one took 7.0 s",
    ]
