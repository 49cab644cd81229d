"""Python blocks of the pages: where they stand, and what runs before them."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^\n]+?) -->\n)?^```python\n(?P<code>.*?)^```$", re.M | re.S
)
KNOWN = ("torch", "pab_compile")
"""Modules that blocks use without importing them."""


@dataclass(frozen=True)
class Block:
    """A block of Python.

    Attributes:
        page: the page, such as ``docs/plans.md``.
        line: its first line.
        code: the text.
        why_not_run: what its page says of it; empty if it runs.
    """

    page: str
    line: int
    code: str
    why_not_run: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(text: str, page: str) -> list[Block]:
    """The blocks of a page."""
    return [
        Block(page, text[: m.start("code")].count("\n") + 1, m["code"], m["why"] or "")
        for m in BLOCK.finditer(text)
    ]


def read_blocks(path: Path, root: Path) -> list[Block]:
    """The blocks of a file."""
    return blocks_of(path.read_text(encoding="utf-8"), str(path.relative_to(root)))


def missing_names(code: str) -> list[str]:
    """Imports of a block, and attributes of modules that it uses, which do not exist."""
    tree = ast.parse(code)
    modules = {name: importlib.import_module(name) for name in KNOWN}
    missing = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            missing += [alias.name for alias in node.names if _module(alias.name) is None]
        elif isinstance(node, ast.ImportFrom):
            found = _module(node.module or "")
            missing += [
                f"{node.module}.{alias.name}"
                for alias in node.names
                if not hasattr(found, alias.name)
            ]
        elif isinstance(node, ast.Attribute):
            missing += _missing_attribute(node, modules)
    return missing


def _missing_attribute(node: ast.Attribute, modules: dict[str, ModuleType]) -> Iterator[str]:
    """Whether ``torch.a.b`` exists; nothing is known of other values."""
    name = ast.unparse(node)
    first, *path = name.split(".")
    value: object = modules.get(first)
    if value is None or not all(part.isidentifier() for part in path):
        return
    for part in path:
        if not isinstance(value, ModuleType):
            return
        if not hasattr(value, part):
            yield name
            return
        value = getattr(value, part)


def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
