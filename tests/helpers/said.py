"""Texts of the library, read from its source: what is noted, warned of and raised."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


def sources(*folders: str) -> Iterator[Path]:
    """The files of some folders of the repository."""
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    """A file, parsed."""
    return ast.parse(path.read_text(encoding="utf-8"))


def texts_of(path: Path) -> Iterator[str]:
    """Every text of a file that is no docstring; ``{}`` stands for a value."""
    tree = tree_of(path)
    nodes = list(ast.walk(tree))
    inside = {id(part) for n in nodes if isinstance(n, ast.JoinedStr) for part in n.values}
    docs = {id(n.value) for n in nodes if isinstance(n, ast.Expr)}
    for node in nodes:
        is_plain = isinstance(node, ast.Constant) and id(node) not in inside | docs
        if is_plain or isinstance(node, ast.JoinedStr):
            yield from read(node, {})


def read(node: ast.expr | ast.AST, names: Mapping[str, Sequence[ast.expr]]) -> list[str]:
    """The texts that an expression can be; empty if its source does not tell."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join((read(part, names) or ["{}"])[0] for part in parts)]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            ends = read(right, names) or ["{}"]
            starts = read(left, names) or ["{}"]
            found = [start + end for start in starts for end in ends]
            return [] if found == ["{}{}"] else found
        case ast.IfExp(body=body, orelse=other):
            return [*read(body, names), *read(other, names)]
        case ast.Call(func=ast.Attribute(value=template, attr="format")):
            return read(template, names)
        case ast.Name(id=name):
            return [text for value in names.get(name, ()) for text in read(value, names)]
    return []


def given_to(path: Path, *methods: str) -> Iterator[tuple[str, list[str]]]:
    """The first argument of every call of some functions: as written, and the texts it can be."""
    tree = tree_of(path)
    names: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names.setdefault(node.targets[0].id, []).append(node.value)
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and node.args):
            continue
        function = node.func
        name = getattr(function, "attr", getattr(function, "id", ""))
        if name in methods:
            yield ast.unparse(node.args[0]), read(node.args[0], names)
