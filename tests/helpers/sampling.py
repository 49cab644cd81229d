"""Which tests ``make test`` leaves out: those marked ``long``, and cases outside of a ``sample``.

A sweep runs one test on many models, or on many combinations of options. Its sample keeps a case
of every kind, so that ``tests/mutations`` finds with the sample what it finds with all cases.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

import pytest


def leave_out(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """The tests that are left out.

    Raises:
        pytest.UsageError: a sample names a case that does not exist.
    """
    sampled = [item for item in items if item.get_closest_marker("sample") is not None]
    _check(sampled)
    return [
        item
        for item in items
        if item.get_closest_marker("long") is not None
        or (item in sampled and _case(item) not in _sample(item))
    ]


def _check(items: Iterable[pytest.Item]) -> None:
    """A case that was renamed must not silently drop out of its sample."""
    cases: dict[str, set[str]] = {}
    samples: dict[str, set[str]] = {}
    for item in items:
        function = item.nodeid.split("[")[0]
        cases.setdefault(function, set()).add(_case(item))
        samples[function] = set(_sample(item))
    for function, sample in samples.items():
        if missing := sorted(sample - cases[function]):
            raise pytest.UsageError(
                f"{function} has no case {missing[0]!r}. Its cases: {sorted(cases[function])}"
            )


def _sample(item: pytest.Item) -> tuple[str, ...]:
    marker = item.get_closest_marker("sample")
    return marker.args if marker else ()


def _case(item: pytest.Item) -> str:
    """The name of a case, without the parameters that it takes from fixtures."""
    return item.callspec.id  # type: ignore[attr-defined]


def are_tests_long(source: str) -> dict[str, bool]:
    """The test functions of a file, and whether each is marked ``long``: a sample has a case."""
    tree = ast.parse(source)
    marks = [
        ast.unparse(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    are_long = any("mark.long" in mark for mark in marks)
    return {
        node.name: are_long
        or any(ast.unparse(mark).endswith("mark.long") for mark in node.decorator_list)
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
