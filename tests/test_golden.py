"""The golden files themselves: each is used, and a difference fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.golden import GOLDEN, check_golden, stale_goldens

TESTS = Path(__file__).parent


def test_every_golden_file_is_named_by_a_test() -> None:
    files = sorted(path.stem for path in GOLDEN.glob("*.txt"))
    sources = [path.read_text() for path in TESTS.rglob("test_*.py") if path != Path(__file__)]
    assert stale_goldens(files, sources) == []


def test_a_golden_that_no_test_names_is_stale() -> None:
    sources = ['check_golden("latte", text)', 'check_golden(f"wan.{kind}", text)']
    assert stale_goldens(["latte", "latte2", "wan.cross", "wan"], sources) == ["latte2", "wan"]


def test_a_name_that_cannot_be_read_from_the_source_is_refused() -> None:
    with pytest.raises(ValueError, match="as a literal"):
        stale_goldens(["latte"], ["check_golden(name, text)"])


def test_a_difference_fails_and_shows_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EXPECTTEST_ACCEPT", raising=False)
    (tmp_path / "graph.txt").write_text("%x = 1\n%y = 2\n")
    check_golden("graph", "%x = 1\n%y = 2\n", tmp_path)
    with pytest.raises(AssertionError, match=r"-%y = 2\n\+%y = 3"):
        check_golden("graph", "%x = 1\n%y = 3\n", tmp_path)


def test_a_missing_golden_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXPECTTEST_ACCEPT", raising=False)
    with pytest.raises(AssertionError, match="No golden file"):
        check_golden("graph", "%x = 1\n", tmp_path)


def test_accepting_writes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPECTTEST_ACCEPT", "1")
    check_golden("graph", "%x = 1\n", tmp_path)
    assert (tmp_path / "graph.txt").read_text() == "%x = 1\n"
