"""The benchmark `frontier`: what wins is marked, and rows of several runs come together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.frontier.main import command_of, parse
from benchmarks.frontier.solvers import levels_of
from benchmarks.frontier.table import CONVERGED, FEWER, OURS, SAME, Book, Row, lines_of
from benchmarks.frontier.weights import computed_of, gaps_of, taylor
from benchmarks.transfer import resampled


def row(group: str, name: str, same: float, converged: float) -> Row:
    psnr = {SAME: [same - 1, same + 1], CONVERGED: [converged - 2, converged + 2]}
    return Row(group, name, psnr)


def test_the_best_row_is_marked_also_if_it_is_not_ours_and_targets_say_what_is_missing() -> None:
    rows = [row(FEWER, "Euler", 30, 20), row(FEWER, "UniPC 2", 31, 35), row(OURS, "x", 36, 34)]
    text = "\n".join(lines_of("joint", 10, rows, "2 videos"))
    assert "| fewer steps, UniPC 2 | 31.0 ± 2.0 | - | **35.0 ± 3.9** | - |" in text
    assert "| tuned, x | **36.0 ± 2.0** | +5.0 ± 0.0 | 34.0 ± 3.9 | -1.0 ± 0.0 |" in text
    assert "To converged the best is: fewer steps, UniPC 2." in text
    assert "at least 4 dB. Found 5.0 dB: met." in text
    assert "at least 3 dB. Found -1.0 dB: missed by 4.0 dB." in text


def test_each_section_names_the_commands_of_its_rows() -> None:
    def told(args: list[str], group: str, name: str) -> Row:
        command = command_of(parse(args), "joint", 10, group)
        return replace(row(name, "x", 1, 1), command=command)

    rows = [
        told(["--held-out", "4", "--moves", "3"], "fewer", FEWER),
        told(["--held-out", "4", "--models", "deep", "joint", "--prompts", "5"], "tuned", OURS),
    ]
    text = "\n".join(lines_of("joint", 10, rows, "4 videos"))
    what = "`python -m benchmarks frontier --models joint --computed 10 --only"
    assert f"- {what} fewer --held-out 4` prints the rows of: fewer steps." in text
    assert f"- {what} tuned --held-out 4 --prompts 5` prints the rows of: tuned." in text


def test_rows_of_another_run_replace_those_of_the_same_name_and_videos(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    book = Book.at(path)
    book.add("joint", 10, "2 videos", row(OURS, "x", 36, 34))
    book.add("joint", 10, "2 videos", row(FEWER, "Euler", 30, 20))
    Book.at(path).add("joint", 10, "2 videos", row(OURS, "x", 40, 40))
    found = Book.at(path).rows("joint", 10)
    assert [(each.label, each.score(SAME).mean) for each in found] == [
        ("fewer steps, Euler", 30),
        ("tuned, x", 40),
    ]
    book.add("deep", 7, "2 videos", row(FEWER, "Euler", 30, 20))
    assert len(Book.at(path).rows("joint", 10)) == 2, "rows of runs side by side are kept"
    Book.at(path).add("joint", 10, "3 videos", row(FEWER, "Euler", 31, 21))
    assert len(Book.at(path).rows("joint", 10)) == 1


@pytest.mark.parametrize(("num_steps", "shift"), [(30, 1.0), (50, 1.0), (30, 3.0)])
def test_resampled_weights_keep_the_sum_of_a_gap_per_level(num_steps: int, shift: float) -> None:
    entries, old = taylor([0, 1, 2, 10, 20], 30, 2), levels_of(30).tolist()
    new = levels_of(num_steps, shift).tolist()
    found = resampled(entries, old, new)

    def sums(entries: list, levels: list[float]) -> list[np.ndarray]:
        result = []
        for start, end in gaps_of(computed_of(entries), len(entries))[-2:]:
            lengths = -np.diff(levels[start : end + 1])
            moves = lengths[1:] @ np.asarray(entries[start + 1 : end])
            moves[-1] += lengths[0]
            result.append(moves / lengths.sum())
        return result

    np.testing.assert_allclose(sums(found, new), sums(entries, old), atol=1e-4)
