"""Who may import what: arrows between the packages run one way."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for tree in ("passes", "pab_compile")
    for path in (ROOT / tree).rglob("*.py")
)
# A package imports from those to its left, and from itself. Packages of one group do not know
# each other.
LAYERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "passes": (
        ("errors",),
        ("graph",),
        ("axes",),
        ("sites",),
        ("rewrite",),
        ("program",),
        ("pipeline",),
        ("parallel",),
    ),
    "pab_compile": (
        ("passes",),
        ("errors", "dynamo_rules"),
        ("dynamo",),
        ("plans", "denoisers", "machine"),
        ("option_values", "option_text", "auto_split"),
        ("option_ranks",),
        ("options", "report"),
        ("runtime",),
        ("calibration", "ranks"),
        ("compile",),
        ("forecast",),
        ("backend", "inspect"),
        ("traffic", "live"),
        ("tuning",),
        ("cli",),
        ("__init__",),
    ),
}
PRIVATE_APIS = ("torch._C", "torch._dynamo", "torch._functorch", "torch._inductor")
MAY_USE = {
    "passes/graph/tracing.py": ("torch._C", "torch._dynamo", "torch._functorch"),
    "pab_compile/compile/lower.py": PRIVATE_APIS,
    "pab_compile/dynamo.py": PRIVATE_APIS,
    "pab_compile/dynamo_rules/given_numbers.py": ("torch._dynamo",),
    "pab_compile/dynamo_rules/kept_modules.py": ("torch._dynamo",),
    "pab_compile/dynamo_rules/known_numbers.py": ("torch._C", "torch._dynamo"),
    "pab_compile/dynamo_rules/sdp_kernel.py": ("torch._dynamo",),
    "pab_compile/dynamo_rules/transformer_layers.py": ("torch._dynamo",),
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


def imported_names(path: str) -> Iterator[str]:
    """Every module that a source file imports, absolute."""
    tree = ast.parse((ROOT / path).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    return dotted_names("\n".join(ast.unparse(node) for node in imports), package_of(path))


def is_within(name: str, module: str) -> bool:
    """Whether a dotted name is a module or lies inside it."""
    return name == module or name.startswith(module + ".")


def package_of(path: str) -> str:
    """The package that a source file belongs to."""
    folder = path.rpartition("/")[0].replace("/", ".")
    return f"pab_compile.{folder}" if folder.startswith("passes") else folder


def layer_of(name: str, tree: str) -> int | None:
    """The layer of a dotted name in one of the trees; None for a name outside of it."""
    root = "pab_compile.passes" if tree == "passes" else "pab_compile"
    if not is_within(name, root):
        return None
    member = name.removeprefix(root).lstrip(".").split(".")[0] or "__init__"
    numbers = [number for number, layer in enumerate(LAYERS[tree]) if member in layer]
    return numbers[0] if numbers else len(LAYERS[tree]) - 1


def forbidden_imports(path: str, names: Iterator[str]) -> list[str]:
    """What a source file imports from its own layer's neighbours or from a later layer."""
    tree, _, rest = path.partition("/")
    if path == "passes/__init__.py":
        return []
    member = rest.split("/")[0].removesuffix(".py")
    mine = next(n for n, layer in enumerate(LAYERS[tree]) if member in layer)
    own = f"{'pab_compile.' if tree == 'passes' else ''}{tree.replace('/', '.')}.{member}"
    return [
        name
        for name in names
        if not is_within(name, own)
        and (theirs := layer_of(name, tree)) is not None
        and (theirs >= mine)
    ]


def test_packages_import_from_earlier_layers_only() -> None:
    found = {path: forbidden_imports(path, imported_names(path)) for path in SOURCES}
    against = [f"{path} imports {name}" for path, names in found.items() for name in names]
    assert not against, "against the order of LAYERS: " + "; ".join(against)


def test_an_import_against_the_order_is_found() -> None:
    for path, name in {
        "passes/axes/rules.py": "pab_compile.passes.rewrite.verify.verify",
        "pab_compile/plans/plan.py": "pab_compile.compile.lower.PieceCompiler",
        "pab_compile/report/draw.py": "pab_compile.options.Options",
        "pab_compile/runtime/scope.py": "pab_compile.stats",
    }.items():
        assert forbidden_imports(path, iter([name])) == [name]
    assert not forbidden_imports("passes/axes/rules.py", iter(["pab_compile.passes.graph.ir"]))


def test_private_torch_apis_stay_in_their_files() -> None:
    for path in SOURCES:
        forbidden = [api for api in PRIVATE_APIS if api not in MAY_USE.get(path, ())]
        names = dotted_names((ROOT / path).read_text(), package_of(path))
        found = [name for name in names for api in forbidden if is_within(name, api)]
        assert not found, f"{path} uses {found}: private torch APIs live in {sorted(MAY_USE)}"


def test_passes_have_one_import_name() -> None:
    for path in SOURCES:
        imported = [name for name in imported_names(path) if is_within(name, "passes")]
        assert not imported, f"{path} imports {imported}: write pab_compile.passes"


def test_passes_import_neither_the_product_nor_other_libraries() -> None:
    allowed = REQUIRED | sys.stdlib_module_names
    for path in (path for path in SOURCES if path.startswith("passes/")):
        wrong = [
            name
            for name in imported_names(path)
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
        ("from . import ir", "pab_compile.passes.graph.ir"),
        ("from ..backend import pab", "pab_compile.passes.backend.pab"),
    ],
)
def test_dotted_names_sees_every_way_to_import(line: str, name: str) -> None:
    assert name in list(dotted_names(line, "pab_compile.passes.graph"))
