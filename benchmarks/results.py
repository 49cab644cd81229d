"""Results: what a benchmark measured, as a table, as JSON and as markdown.

Numbers taken on a CPU are ratios of runs that alternated in one process or one sitting; seconds are
reported from a GPU only.
"""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

RESULTS_DIR = Path(__file__).parent / "results"
PACKAGES = ("pab_compile", "torch", "diffusers")
ARROWS = {"<=": "at most", ">=": "at least", "==": "exactly"}


@dataclass(frozen=True)
class Target:
    """A bound that a measure should keep: `relation` is `<=`, `>=` or `==`."""

    relation: str
    bound: float

    def is_met(self, value: float) -> bool:
        if self.relation == "<=":
            return value <= self.bound
        return value >= self.bound if self.relation == ">=" else value == self.bound

    def __str__(self) -> str:
        return f"{ARROWS[self.relation]} {self.bound:g}"


@dataclass(frozen=True)
class Measure:
    """One number.

    Attributes:
        name: what was measured, in words.
        value: the median.
        unit: unit of the value; `x` for ratios.
        target: the bound it should keep, if there is one.
        samples: the single values that the median is taken of.
    """

    name: str
    value: float
    unit: str = "x"
    target: Target | None = None
    samples: tuple[float, ...] = ()

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "met" if self.target.is_met(self.value) else "MISSED"

    @property
    def text(self) -> str:
        digits = 0 if self.value == int(self.value) and self.unit != "x" else 2
        return f"{self.value:.{digits}f} {self.unit}"

    @property
    def spread(self) -> str:
        if len(self.samples) < 2:
            return ""
        return f"{min(self.samples):.2f} to {max(self.samples):.2f}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


@dataclass
class Result:
    """All that one benchmark measured.

    Attributes:
        benchmark: its name.
        command: the command that prints it.
        settings: sizes, steps and rounds.
        measures: the numbers, in the order of the table.
        notes: what a reader must know to read them rightly.
        file_name: stem of the committed files.
    """

    benchmark: str
    command: str
    settings: dict[str, Any]
    measures: list[Measure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    file_name: str = ""

    def add(
        self,
        name: str,
        value: float,
        unit: str = "x",
        target: Target | None = None,
        samples: Iterable[float] = (),
    ) -> None:
        self.measures.append(Measure(name, value, unit, target, tuple(samples)))

    def to_json(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark,
            "command": self.command,
            "versions": versions(),
            "date": str(datetime.date.today()),
            "settings": self.settings,
            "measures": [measure.to_json() for measure in self.measures],
            "notes": self.notes,
        }


def versions() -> dict[str, str]:
    """Returns the versions and the sort of device that the numbers were taken with."""
    found = {"python": platform.python_version()}
    found.update({package: version(package) for package in PACKAGES})
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
        found["cuda"] = str(torch.version.cuda)
    else:
        capability = torch.backends.cpu.get_cpu_capability()
        found["device"] = f"CPU, {capability}, {torch.get_num_threads()} threads"
    return found


def make_table(result: Result) -> Table:
    """Lays out a result for a terminal."""
    table = Table(title=result.benchmark, box=box.SIMPLE, title_justify="left")
    table.add_column("measure")
    for header in ("median", "from .. to", "target", ""):
        table.add_column(header, justify="right", no_wrap=True)
    for measure in result.measures:
        colour = {"met": "green", "MISSED": "red"}.get(measure.verdict, "default")
        target = str(measure.target or "")
        verdict = f"[{colour}]{measure.verdict}[/{colour}]" if measure.verdict else ""
        table.add_row(measure.name, measure.text, measure.spread, target, verdict)
    return table


def footer(result: Result) -> list[str]:
    """Returns the lines under the table: notes, command, versions, settings."""
    used = ", ".join(f"{name} {number}" for name, number in versions().items())
    return [*result.notes, f"Command: {result.command}", f"Versions: {used}", _settings(result)]


def make_markdown(result: Result) -> str:
    """Lays out a result as a markdown section."""
    lines = [f"### {result.benchmark}", ""]
    lines += ["| measure | median | from .. to | target | |", "|---|---:|---:|---:|---|"]
    for m in result.measures:
        cells = (m.name, m.text, m.spread, str(m.target or ""), m.verdict)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{line}  " for line in footer(result)), ""])


def write(results: list[Result], path: Path) -> list[Path]:
    """Writes results to a JSON file and, beside it, to a markdown file of the same name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content: Any = [result.to_json() for result in results]
    path.write_text(json.dumps(content[0] if len(content) == 1 else content, indent=1) + "\n")
    markdown = path.with_suffix(".md")
    markdown.write_text("\n".join(make_markdown(result) for result in results))
    return [path, markdown]


def _settings(result: Result) -> str:
    return "Settings: " + ", ".join(f"{name} {value}" for name, value in result.settings.items())
