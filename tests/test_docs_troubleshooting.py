"""``docs/troubleshooting.md`` explains every error and every note, and nothing else."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from diffusers import PyramidAttentionBroadcastConfig

import pab_compile.errors

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ABOUT_REUSE = re.compile(
    r"(nothing|not|none of \w+ outputs were) (was |were )?reused|generation was computed"
)
FOLDERS = ("runtime", "compile", "plans")


def rows(heading: str) -> list[str]:
    """The first column of the table under a heading, without code marks."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(.+?)` \|", section, re.M)


def texts() -> Iterator[str]:
    """Every text in the library's runtime that is no docstring; ``{}`` stands for a value."""
    for folder in FOLDERS:
        for path in (ROOT / "pab_compile" / folder).glob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            inside = {
                id(part)
                for n in ast.walk(tree)
                if isinstance(n, ast.JoinedStr)
                for part in n.values
            }
            docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(
                        p.value if isinstance(p, ast.Constant) else "{}" for p in node.values
                    )
                elif (
                    isinstance(node, ast.Constant)
                    and isinstance(node.value, str)
                    and id(node) not in inside | docs
                ):
                    yield node.value


def test_every_error_is_explained() -> None:
    assert set(rows("Errors")) == {*pab_compile.errors.__all__, "StatedAxesError"}


def test_every_note_about_reuse_is_explained() -> None:
    phrases = rows("Notes")
    notes = [text for text in texts() if ABOUT_REUSE.search(text) and " " in text]
    assert len(notes) >= 12
    assert [note for note in notes if not any(phrase in note for phrase in phrases)] == []


def test_every_phrase_of_the_page_is_one_that_is_said() -> None:
    said = list(texts())
    assert [p for p in rows("Notes") if not any(p in text for text in said)] == []


def test_the_settings_of_diffusers_exist() -> None:
    page = (ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(\w+)=", page, re.M)
    fields = {field.name for field in dataclasses.fields(PyramidAttentionBroadcastConfig)}
    assert len(named) >= 5
    assert set(named) <= fields
