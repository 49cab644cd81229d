"""``docs/troubleshooting.md`` explains every error, note and warning, and nothing else."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

from diffusers import PyramidAttentionBroadcastConfig

import pab_compile.passes
from helpers.said import given_to, sources, texts_of
from pab_compile.errors import PabError

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ABOUT_REUSE = re.compile(
    r"(nothing|not|none of \w+ outputs were) (was |were )?reused|"
    r"(generation|guidance) was computed"
)
FOLDERS = ("pab_compile/runtime", "pab_compile/compile", "pab_compile/plans")
ASKED_FOR = {
    "text",  # handed on by the method itself
    "why",  # likewise
    "entered.note",  # stepping.py
    "note",  # stepping.py
    "self._why_not_earlier",  # generation.py
    "generation.allowance.note(self.transfers(device) is not None)",  # plans/budget.py
    "self.transfers(device) is not None",  # its argument
    "reason",  # UnsupportedModelError of a graph of several
}
"""What is noted and made by a function: its texts are found by ``ABOUT_REUSE``."""
CAUGHT = {"NoTimestepError", "NoAttentionError", "NotTracedError"}
"""Kinds of UnsupportedModelError that the library tells apart; users see its name, or its texts."""


def rows(heading: str) -> list[str]:
    """The first column of the table under a heading, without code marks."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(.+?)` \|", section, re.M)


def texts() -> Iterator[str]:
    """Every text in the library's runtime that is no docstring; ``{}`` stands for a value."""
    for path in sources(*FOLDERS):
        yield from texts_of(path)


def unexplained(said: Iterator[str], heading: str) -> list[str]:
    """The texts in which no phrase of a table stands."""
    phrases = rows(heading)
    return [text for text in said if not any(phrase in text for phrase in phrases)]


def errors() -> Iterator[type[PabError]]:
    """Every class of error of the library."""
    for package in (pab_compile, pab_compile.passes):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    left = [PabError]
    while left:
        left += (found := left.pop()).__subclasses__()
        if found.__module__.startswith("pab_compile"):
            yield found


def test_every_error_is_explained() -> None:
    assert set(rows("Errors")) == {error.__name__ for error in errors()} - CAUGHT


def test_every_note_is_explained() -> None:
    found = [
        found for path in sources("pab_compile") for found in given_to(path, "note", "distrust")
    ]
    noted = [text for _, said in found for text in said]
    assert len(noted) >= 12
    assert unexplained(iter(noted), "Notes") == []
    assert {written for written, said in found if not said} == ASKED_FOR


def test_every_text_about_reuse_is_explained() -> None:
    about = [text for text in texts() if ABOUT_REUSE.search(text) and " " in text]
    assert len(about) >= 12
    assert unexplained(iter(about), "Notes") == []


def test_every_warning_is_explained() -> None:
    found = [
        found
        for path in sources("pab_compile", "passes")
        for found in given_to(path, "warn", "warning")
    ]
    assert len(found) >= 4
    assert [written for written, said in found if not said] == []
    assert unexplained((text for _, said in found for text in said), "Warnings") == []


def test_every_phrase_of_the_page_is_one_that_is_said() -> None:
    said = [text for path in sources("pab_compile") for text in texts_of(path)]
    phrases = [*rows("Notes"), *rows("Warnings")]
    assert [p for p in phrases if not any(p in text for text in said)] == []


def test_a_test_holds_every_error_note_and_warning_of_the_page() -> None:
    me = Path(__file__)
    tests = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "tests").rglob("*")
        if path.suffix in (".py", ".txt") and path != me
    )
    tests = re.sub(r"\"\s*\n\s*r?f?\"", "", tests).replace("\\", "")  # texts in several lines
    for phrase in (*rows("Errors"), *rows("Notes"), *rows("Warnings")):
        words = phrase.strip(" :").split()
        parts = [" ".join(words[n : n + 3]) for n in range(max(len(words) - 2, 1))]
        assert any(part in tests for part in parts), phrase


def test_the_settings_of_diffusers_exist() -> None:
    page = (ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(\w+)=", page, re.M)
    fields = {field.name for field in dataclasses.fields(PyramidAttentionBroadcastConfig)}
    assert len(named) >= 5
    assert set(named) <= fields
