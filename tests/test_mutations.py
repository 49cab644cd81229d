"""The mutations fit the library, and name tests that ``make test`` runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.sampling import are_tests_long
from mutations.catalogue import MUTATIONS
from mutations.costs import SLOWER
from mutations.mutation import Mutation

ROOT = Path(__file__).parents[1]
EVERY = [pytest.param(each, id=f"{each.path}: {each.what}") for each in (*MUTATIONS, *SLOWER)]


def selected(source: str) -> list[str]:
    """Names of the test functions of a file that ``make test`` runs."""
    return [name for name, is_long in are_tests_long(source).items() if not is_long]


def files(name: str) -> list[Path]:
    path = ROOT / name
    return sorted(path.rglob("test_*.py")) if path.is_dir() else [path]


@pytest.mark.parametrize("mutation", EVERY)
def test_a_mutation_changes_its_file_and_names_tests_that_are_selected(mutation: Mutation) -> None:
    source = (ROOT / mutation.path).read_text(encoding="utf-8")
    assert mutation.applied(source) != source
    for name in mutation.tests:
        assert any(selected(file.read_text(encoding="utf-8")) for file in files(name)), name


def test_long_tests_and_helpers_are_not_selected() -> None:
    source = "@pytest.mark.long\n@pytest.mark.slow\ndef test_a(): ...\n\ndef b(): ...\n"
    assert selected(source) == []
    assert selected(source + "\n@pytest.mark.sample('1')\ndef test_c(): ...\n") == ["test_c"]
    assert selected("pytestmark = [pytest.mark.slow, pytest.mark.long]\ndef test_d(): ...\n") == []


def test_what_occurs_twice_or_never_is_stale() -> None:
    mutation = Mutation("file.py", "what", "old", "new", ())
    for source in ("", "old old"):
        with pytest.raises(ValueError, match="Update the mutation"):
            mutation.applied(source)
