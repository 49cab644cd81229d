"""The rows of the comparison: kept as JSON, printed as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.results import Target
from pab_compile.tuning.score import Score

from .videos import REFERENCES

SAME, CONVERGED = REFERENCES
FEWER, PUBLISHED, OURS = "fewer steps", "reuse as published", "tuned"
"""The groups of rows."""


@dataclass(frozen=True)
class Row:
    """One way to spend the model calls.

    Attributes:
        group: ``FEWER``, ``PUBLISHED`` or ``OURS``.
        name: what it is.
        psnr: reference -> dB of every held-out video.
        note: what else is worth knowing.
        command: prints the row.
    """

    group: str
    name: str
    psnr: Mapping[str, Sequence[float]]
    note: str = ""
    command: str = ""

    @property
    def label(self) -> str:
        """Group and name."""
        return f"{self.group}, {self.name}"

    def score(self, reference: str) -> Score:
        """The mean with its interval."""
        return Score.of(self.psnr[reference])

    def gain(self, other: Row, reference: str) -> Score:
        """How much better it is than another row, video by video."""
        pairs = zip(self.psnr[reference], other.psnr[reference], strict=True)
        return Score.of([ours - theirs for ours, theirs in pairs])


def best_of(rows: Sequence[Row], reference: str, group: str = "") -> Row:
    """The row with the highest mean."""
    those = [row for row in rows if group in ("", row.group)]
    return max(those, key=lambda row: row.score(reference).mean)


TARGETS: dict[int, dict[str, tuple[str, Target]]] = {
    15: {
        SAME: ("PSNR", Target(">=", 48)),
        CONVERGED: ("more than the best solver", Target(">=", 4)),
    },
    10: {
        SAME: ("more than the best solver", Target(">=", 4)),
        CONVERGED: ("more than the best solver", Target(">=", 3)),
    },
    7: {
        SAME: ("more than the best solver", Target(">=", 4)),
        CONVERGED: ("more than the best solver", Target(">=", 3)),
    },
}
"""Computed steps -> reference -> what should hold of the best tuned plan."""


def lines_of(model: str, computed: int, rows: Sequence[Row], about: str) -> Iterator[str]:
    """A table in Markdown. The best row of each column is bold."""
    yield f"### {model}, {computed} of 30 model calls"
    yield ""
    yield about
    yield ""
    heads = [f"to {name}, dB | minus the best solver" for name in REFERENCES]
    yield f"| | {' | '.join(heads)} |"
    yield "|---|---:|---:|---:|---:|"
    for row in rows:
        cells = [row.label + (f" ({row.note})" if row.note else "")]
        for name in REFERENCES:
            solver, score = best_of(rows, name, FEWER), str(row.score(name))
            cells.append(f"**{score}**" if row is best_of(rows, name) else score)
            cells.append("-" if row is solver else signed(row.gain(solver, name)))
        yield f"| {' | '.join(cells)} |"
    yield ""
    for name in REFERENCES:
        best, solver = best_of(rows, name), best_of(rows, name, FEWER)
        yield f"- To {name} the best is: {best.label}. The best solver is {solver.name}."
    yield from verdicts(computed, rows)
    commands: dict[str, list[str]] = {}
    for row in rows:
        groups = commands.setdefault(row.command, [])
        if row.group not in groups:
            groups.append(row.group)
    for command, groups in commands.items():
        yield f"- `{command}` prints the rows of: {', '.join(groups)}."
    yield ""


def verdicts(computed: int, rows: Sequence[Row]) -> Iterator[str]:
    """What the targets say of the best tuned plans."""
    if not any(row.group == OURS for row in rows):
        return
    for name, (measure, target) in TARGETS.get(computed, {}).items():
        ours, solver = best_of(rows, name, OURS), best_of(rows, name, FEWER)
        value = (ours.score(name) if measure == "PSNR" else ours.gain(solver, name)).mean
        missed = f"missed by {abs(target.bound - value):.1f} dB"
        said = "met" if target.is_met(value) else missed
        yield f"- Target to {name}, {measure}: {target} dB. Found {value:.1f} dB: {said}."


def signed(score: Score) -> str:
    """A difference with its sign."""
    return f"{score.mean:+.1f} ± {score.half_width:.1f}"


@dataclass
class Book:
    """All rows that were measured, by model and number of computed steps.

    Attributes:
        path: the JSON file; None keeps nothing.
        content: model -> computed steps -> label -> row.
    """

    path: Path | None
    content: dict[str, dict[str, dict[str, Any]]]

    @staticmethod
    def at(path: Path | None) -> Book:
        """The file's rows, if there are any."""
        found = json.loads(path.read_text()) if path is not None and path.is_file() else {}
        return Book(path, found)

    def add(self, model: str, computed: int, about: str, row: Row) -> None:
        """Add a row. It replaces one of the same name; rows of other videos are dropped.

        The file is read again before, since several runs may fill it.
        """
        self.content = Book.at(self.path).content if self.path is not None else self.content
        table = self.content.setdefault(model, {}).setdefault(str(computed), {})
        if table.get("about") != about:
            table.clear()
            table["about"] = about
        psnr = {name: [round(value, 2) for value in values] for name, values in row.psnr.items()}
        rows = [each for each in table.get("rows", []) if _label(each) != row.label]
        texts = {"group": row.group, "name": row.name, "note": row.note, "command": row.command}
        rows.append({**texts, "psnr": psnr})
        order = [FEWER, PUBLISHED, OURS]
        table["rows"] = sorted(rows, key=lambda each: order.index(each["group"]))
        if self.path is not None:
            self.path.write_text(json.dumps(self.content) + "\n")

    def rows(self, model: str, computed: int) -> list[Row]:
        """The rows of a table."""
        table = self.content[model][str(computed)]
        names = ("group", "name", "psnr", "note", "command")
        return [Row(*(each[name] for name in names)) for each in table["rows"]]

    def tables(self) -> Iterator[tuple[str, int, list[Row], str]]:
        """Model, computed steps, rows and what they are of."""
        for model, tables in self.content.items():
            for computed in sorted(map(int, tables), reverse=True):
                about = tables[str(computed)]["about"]
                yield model, computed, self.rows(model, computed), about


def _label(row: Mapping[str, Any]) -> str:
    return f"{row['group']}, {row['name']}"
