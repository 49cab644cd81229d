"""Expected text: ``check_inline`` for a few lines, ``check_golden`` for ``tests/goldens/NAME.txt``.

``make goldens`` accepts what the code prints now. Every golden file must be named by a test, as a
literal (or an f-string) in the call, so that files which nobody checks any more are found.
"""

from __future__ import annotations

import ast
import difflib
import os
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import expecttest

GOLDEN = Path(__file__).parents[1] / "goldens"


def check_inline(text: str, expected: str) -> None:
    """Compare a text with a triple-quoted literal that is indented like the code around it.

    Args:
        text: what the code prints.
        expected: the literal; it starts with a backslash and a line break, and its last line holds
            the indentation.

    Raises:
        AssertionError: the texts differ, unless ``EXPECTTEST_ACCEPT`` is set: then the literal is
            rewritten in the source.
    """
    indent = expected.rpartition("\n")[2]
    indented = textwrap.indent(text.rstrip("\n"), indent)
    expecttest.assert_expected_inline(f"{indented}\n{indent}", expected, skip=1)


def check_golden(name: str, text: str, directory: Path = GOLDEN) -> None:
    """Compare a text with the golden file of that name.

    Args:
        name: file name without ``.txt``.
        text: what the code prints.
        directory: where goldens lie.

    Raises:
        AssertionError: the texts differ, or there is no such file. Neither can happen while
            ``EXPECTTEST_ACCEPT`` is set: then the file is written instead.
    """
    path = directory / f"{name}.txt"
    if os.environ.get("EXPECTTEST_ACCEPT"):
        path.write_text(text)
        return
    if not path.exists():
        raise AssertionError(f"No golden file {path.name}: `make goldens` writes it.")
    expected = path.read_text()
    if text != expected:
        diff = difflib.unified_diff(
            expected.splitlines(), text.splitlines(), "golden", "now", n=2, lineterm=""
        )
        raise AssertionError(
            f"{path.name} differs (`make goldens` accepts the text of now):\n" + "\n".join(diff)
        )


def named_goldens(source: str) -> Iterator[re.Pattern[str]]:
    """Names that the ``check_golden`` calls of a test file stand for."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "check_golden":
            yield re.compile(_pattern(node.args[0]))


def stale_goldens(files: Iterable[str], sources: Iterable[str]) -> list[str]:
    """Golden names among ``files`` that no test source names."""
    patterns = [pattern for source in sources for pattern in named_goldens(source)]
    return [name for name in files if not any(p.fullmatch(name) for p in patterns)]


def _pattern(name: ast.expr) -> str:
    if isinstance(name, ast.Constant):
        return re.escape(str(name.value))
    if isinstance(name, ast.JoinedStr):
        return "".join(_pattern(part) for part in name.values)
    if isinstance(name, ast.FormattedValue):
        return ".+"
    raise ValueError(f"Line {name.lineno}: give check_golden its name as a literal or an f-string.")
