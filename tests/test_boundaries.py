"""Who may import what: the arrows between the parts of the house run one way."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PASSES = sorted((ROOT / "passes").rglob("*.py"))
PRODUCT = sorted((ROOT / "pab_compile").glob("*.py"))
SOURCES = [path.relative_to(ROOT).as_posix() for path in PASSES + PRODUCT]

PRIVATE_APIS = ("torch._dynamo", "torch._functorch", "torch._inductor")
MAY_USE = {
    "passes/capture.py": ("torch._dynamo", "torch._functorch"),
    "pab_compile/lower.py": PRIVATE_APIS,
}
REQUIRED = {"networkx", "sympy", "torch"}  # what passes/ may import besides the standard library


def dotted_names(source: str, package: str) -> Iterator[str]:
    """Every module that a file imports, absolute, and every ``torch._x`` that it reaches into."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join(parents if node.level else []) or ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def is_within(name: str, module: str) -> bool:
    """Whether a dotted name is a module or lies inside it."""
    return name == module or name.startswith(module + ".")


def names_of(path: str) -> list[str]:
    """Dotted names that one source file of the library uses."""
    return list(dotted_names((ROOT / path).read_text(), package_of(path)))


def package_of(path: str) -> str:
    """The package that a source file belongs to."""
    folder = path.rpartition("/")[0].replace("/", ".")
    return f"pab_compile.{folder}" if folder.startswith("passes") else folder


@pytest.mark.parametrize("path", SOURCES)
def test_private_torch_apis_stay_in_their_files(path: str) -> None:
    forbidden = [api for api in PRIVATE_APIS if api not in MAY_USE.get(path, ())]
    found = [name for name in names_of(path) for api in forbidden if is_within(name, api)]
    assert not found, f"{path} uses {found}: private torch APIs live in {sorted(MAY_USE)}"


@pytest.mark.parametrize("path", SOURCES)
def test_passes_have_one_import_name(path: str) -> None:
    imported = [name for name in names_of(path) if is_within(name, "passes")]
    assert not imported, f"{path} imports {imported}: write pab_compile.passes"


@pytest.mark.parametrize("path", [path for path in SOURCES if path.startswith("passes/")])
def test_passes_import_neither_the_product_nor_other_libraries(path: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    source = "\n".join(ast.unparse(node) for node in imports)
    names = dotted_names(source, package_of(path))
    allowed = REQUIRED | sys.stdlib_module_names
    wrong = [
        name
        for name in names
        if not is_within(name, "pab_compile.passes") and name.split(".")[0] not in allowed
    ]
    assert not wrong, f"{path} imports {wrong}"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("import torch._inductor.config as c", "torch._inductor.config"),
        ("from torch._dynamo import config", "torch._dynamo.config"),
        ("from torch import _inductor", "torch._inductor"),
        ("x = torch._dynamo.config", "torch._dynamo"),
        ("from . import ir", "pab_compile.passes.ir"),
        ("from ..backend import pab", "pab_compile.backend.pab"),
    ],
)
def test_dotted_names_sees_every_way_to_import(line: str, name: str) -> None:
    assert name in list(dotted_names(line, "pab_compile.passes"))
