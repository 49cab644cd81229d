"""README.md of this folder names tests that exist, and says which of them are long."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.sampling import are_tests_long

FOLDER = Path(__file__).parent
TEST = re.compile(r"`([\w./]+\.py)::(\w+)(\[[^`]*\])?`( \(long\))?")


def wrong_names(text: str) -> Iterator[str]:
    """The tests of a page that do not exist, or that are long without a word."""
    for path, name, _, says_long in TEST.findall(text):
        file = next((at / path for at in (FOLDER, FOLDER.parent) if (at / path).is_file()), None)
        known = {} if file is None else are_tests_long(file.read_text(encoding="utf-8"))
        if name not in known:
            yield f"{path}::{name} does not exist"
        elif known[name] != bool(says_long):
            yield f"{path}::{name} is {'' if known[name] else 'not '}long"


def rows(text: str) -> list[list[str]]:
    """The rows of all tables."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [line.strip("|").split(" | ") for line in lines]
    return [row for row in cells if not set("".join(row)) <= set("-|")]


def test_every_situation_names_a_test_that_exists() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert list(wrong_names(text)) == []
    without = [row[0] for row in rows(text) if row[-1].strip() != "test" and "::" not in row[-1]]
    assert len(rows(text)) > 40 and without == []


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ("`test_none.py::test_a`", "does not exist"),
        ("`test_fuzz.py::test_a`", "does not exist"),
        ("`test_readme.py::test_a_wrong_name_is_found` (long)", "is not long"),
        (
            "`test_foretold_time.py::test_processes_with_slow_links_take_the_time_that_was_foretold`",
            "is long",
        ),
    ],
)
def test_a_wrong_name_is_found(named: str, why: str) -> None:
    (found,) = wrong_names(f"| it differs | it says so | {named} |")
    assert found.endswith(why)
