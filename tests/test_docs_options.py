"""docs/options.md is what docs/options.py prints."""

from __future__ import annotations

import importlib.util
import inspect
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

from pab_compile import Options

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """docs/options.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_options", DOCS / "options.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_script_prints(script: ModuleType) -> None:
    committed = (DOCS / "options.md").read_text(encoding="utf-8")
    assert committed == script.page(), "run: python docs/options.py > docs/options.md"


def test_every_option_has_a_meaning(script: ModuleType) -> None:
    meanings = script.described(inspect.getdoc(Options) or "")
    assert list(meanings) == [option.name for option in fields(Options)]
    assert all(meanings.values())


def test_a_meaning_may_go_over_lines_and_ends_with_its_section(script: ModuleType) -> None:
    attributes = "Attributes:\n    one: a\n        long: line.\n\n    two: b.\n"
    text = f"What it is.\n\n{attributes}\nRaises:\n    X: c.\n"
    assert script.described(text) == {"one": "a long: line.", "two": "b."}


def test_a_bar_does_not_end_a_cell(script: ModuleType) -> None:
    assert script.table(["a"], [["b | c"]]) == "| a |\n| --- |\n| b \\| c |\n"
