"""Writes `docs/performance.md` from the results that are in `benchmarks/results/`.

python -m benchmarks.page          # writes the page
python -m benchmarks.page --check  # fails if the page is not what the results say
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .quality_score import EQUAL_HEADERS, Score, as_good, markdown
from .results import RESULTS_DIR, Measure, Target

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
HEAD = """# Performance

`python -m benchmarks.page` writes this page from [benchmarks/results](../benchmarks/results).
Each table names the command that measures it, the versions and the day.
Ratios compare runs that alternate in one sitting. A figure is the median of the ratios within a
round, with the smallest and the largest beside it. [benchmarks/README.md](../benchmarks/README.md)
says how they are taken. No figure here is from a GPU. `python -m benchmarks gpu` is written for
one and has not run on one. Speed is worth nothing without quality.
[Measurements](measurements.md#quality-and-speed-of-many-plans) has both for many plans, beside
fewer steps without reuse at the same cost. [Tuning](tuning.md) does so for tuned plans and better
solvers.
"""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        benchmark: the benchmark whose result it shows.
        words: what stands above the table.
        has_grids: whether the names of the measures are ``row: grid: column``.
        after: what stands below the tables.
    """

    title: str
    benchmark: str
    words: str
    has_grids: bool = False
    after: str = ""


SECTIONS = (
    Section(
        "How near to the limit",
        "efficiency",
        """A plan leaves parts of a model out and can gain no more than their time. The limit of
a step is the model without the parts that it reuses, compiled whole by stock `torch.compile`.
Figures are time of the limit / time of ours. A ratio of 1.00 is the limit. The target is 0.97;
figures in bold miss it.""",
        has_grids=True,
        after="""The narrow models miss the target. Their steps take milliseconds, and Python's
time comes on top. Part of that is Dynamo, which checks its guards on all weights at every call,
as under stock `torch.compile`. A backend cannot leave them out. The last column compares a call
that does nothing else with ours. The rest is this library: it finds the generation, the step and
the plan, looks whether a weight has changed, and calls pieces one by one where a plan reuses
attention only. All of this grows with the number of layers, and not with the size of the tensors.
So the wider Latte, which is still far smaller than the models that people run, meets the target
in most columns and misses it by a hundredth in the others. Other programs used the second core
during this run.""",
    ),
    Section(
        "Beside the operations",
        "overhead",
        """What a step does beside the operations of the model, counted.""",
    ),
    Section(
        "Whole generations",
        "generation",
        """All variants of PAB246 follow the same schedule, so they give the same latents. PAB246
reuses attention only: a step saves no more time than attention takes. Against diffusers' hooks
under `torch.compile` it hardly wins. What wins is to reuse all branches (`linear3` and the levels
of [`enable`](enable.md)).""",
    ),
    Section(
        "At equal quality",
        "quality_joint",
        """Methods that decide by themselves when to compute follow no plan of ours, so they are
compared at equal quality: beside each stands the fastest plan of ours that is at least as near to
the model without reuse. All run under `torch.compile`. The model is the demo's CogVideoX.""",
    ),
    Section(
        "At equal quality, Latte",
        "quality_latte",
        "The same for the demo's Latte. `cache-dit` and First Block Cache do not take it.",
    ),
    Section(
        "First call",
        "compile",
        """Equal blocks share their compiled pieces, so a deeper model has no more of them.
A second process reads what the first one traced ([architecture](architecture.md#capture)). The
rest of its time is the trace by Dynamo, the start of Inductor, the passes and the run.
Dynamo traces in every process. That alone is a larger share of a cold first call than the target
allows.
`precompile` moves the time before the first request.""",
    ),
    Section(
        "Models at their real size",
        "explain_time",
        """How long all passes take for models at the size that people run. The target is 15 s of
processor time for `explain`; figures in bold miss it. On this machine Dynamo alone misses it for
most models, and a backend cannot make that shorter: equal blocks share their work in the passes,
but Dynamo traces each of them. All that this library does takes less than 15 s.""",
        has_grids=True,
    ),
    Section(
        "First video",
        "cold_start",
        """With `warm="background"` pieces run uncompiled until a thread has compiled them.""",
    ),
    Section(
        "Time of a step",
        "steady",
        """The limit of a pattern of PAB246 is one whole graph that is compiled for this pattern
alone. A plan that reuses little pays for the borders between its pieces.""",
    ),
)
# What is counted, what holds, and the tests that hold it.
GUARDS = (
    (
        "pieces, kernels of Inductor, products of matrices and copies of a step",
        "per pattern of steps; no piece is compiled that no step runs, and no tensor is copied",
        ("compile/test_step_counts.py",),
    ),
    (
        "kernels beside stock `torch.compile`",
        "a step of `linear3` that computes has as many as the whole model, one that reuses as many "
        "as the model without its blocks, and a few more",
        ("dits/test_kernels.py",),
    ),
    (
        "operations of a step that reuses",
        "those of what is outside of the blocks, and no more with coalescing",
        ("compile/test_reuse_cost.py",),
    ),
    ("reads from the device", "none", ("compile/test_costs.py",)),
    ("bytes", "every kept tensor is freed at its last use", ("compile/test_costs.py",)),
    (
        "calls of Python in a step that reuses",
        "as many with more blocks and weights",
        ("compile/test_costs.py",),
    ),
    (
        "compilations of equal pieces",
        "one; a row of blocks is cut into equal pieces",
        ("compile/test_lower.py", "passes/rewrite/test_repeats.py"),
    ),
    (
        "captures at further sizes",
        "none once Dynamo keeps a size open",
        ("compile/test_open_sizes.py",),
    ),
    (
        "traces by Dynamo",
        "none for further generations and other plans",
        ("compile/test_costs.py", "live/test_switching.py"),
    ),
    (
        "traces in a capture",
        "equal calls share one; another process reads it",
        ("passes/graph/test_trace_calls.py", "compile/test_trace_store.py"),
    ),
    (
        'compilations that a step waits for, with `warm="background"`',
        "none",
        ("compile/test_background.py",),
    ),
    (
        "nodes that the capture and the passes visit",
        "as many per node of a deeper model; `python -m benchmarks.growth` prints the exponents",
        ("passes/test_growth.py",),
    ),
    (
        "minimum cuts, and ops that ranks add",
        "equal blocks share them",
        (
            "passes/graph/test_minimum_cut.py",
            "passes/parallel/test_append.py",
            "passes/parallel/test_placement.py",
        ),
    ),
)
KERNELS = """## Kernels and operations

These do not depend on the machine, so tests hold them:

| counted | what holds | tests |
|---|---|---|
{}

`python -m tests.mutations --costs` takes optimisations out one by one, and runs the tests that hold
them. It fails if a test does not notice.
"""


def guards() -> str:
    """The table of what tests count."""
    rows = ((*row, "<br>".join(f"`tests/{test}`" for test in tests)) for *row, tests in GUARDS)
    return KERNELS.format("\n".join(f"| {' | '.join(row)} |" for row in rows))


def page() -> str:
    """The text of the page."""
    parts = [HEAD]
    for section in SECTIONS:
        path = RESULTS_DIR / f"{section.benchmark}.json"
        if path.exists():
            parts.append("\n\n".join(filter(None, _shown(section, _read(path)))))
    return "\n".join([*parts, guards()])


def equal_quality(result: dict[str, Any]) -> str:
    """What `benchmarks.quality` found, method by method."""
    rows = as_good([Score(**score) for score in result["scores"]])
    return f"{markdown(EQUAL_HEADERS, rows)}\n\n{result['settings']}.\n"


def table(measures: Iterable[Measure]) -> str:
    """Measures as a markdown table with a row each."""
    lines = ["| | median | from .. to | target | |", "|---|---:|---:|---:|---|"]
    for measure in measures:
        target = str(measure.target or "")
        cells = (measure.name, measure.text, measure.spread, target, measure.verdict)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(line.rstrip() for line in lines)


def grids(measures: Iterable[Measure]) -> str:
    """Measures whose names are ``row: grid: column`` as a markdown table per grid.

    A figure in bold misses its target.
    """
    found: dict[str, dict[str, dict[str, str]]] = {}
    for measure in measures:
        row, grid, column = measure.name.split(": ")
        stars = "**" if measure.verdict == "MISSED" else ""
        spread = f" ({measure.spread})" if measure.spread else ""
        cell = f"{stars}{measure.value:.2f}{stars}{spread}"
        found.setdefault(grid, {}).setdefault(row, {})[column] = cell
    return "\n\n".join(_grid(name, rows) for name, rows in found.items())


def _grid(name: str, rows: dict[str, dict[str, str]]) -> str:
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    lines = [f"| {name} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for row, cells in rows.items():
        lines.append(f"| {row} | {' | '.join(cells.get(column, '') for column in columns)} |")
    return "\n".join(lines)


def footer(result: dict[str, Any]) -> str:
    """What stands below the measures: notes, command, versions and settings."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
    lines = [*result["notes"], f"Command: `{result['command']}`. {result.get('date', '')}"]
    lines.append(f"Versions: {versions}. Settings: {settings}.")
    return "\n".join(line.rstrip() for line in lines)


def _shown(section: Section, result: dict[str, Any]) -> tuple[str, ...]:
    """The paragraphs of a section."""
    head = (f"## {section.title}", section.words)
    if "scores" in result:
        return (*head, equal_quality(result))
    measures = [_measure(raw) for raw in result["measures"]]
    shown = grids(measures) if section.has_grids else table(measures)
    return (*head, shown, section.after, footer(result) + "\n")


def _measure(raw: dict[str, Any]) -> Measure:
    """A measure as a file holds it."""
    fields = {key: value for key, value in raw.items() if key != "verdict"}
    target = fields.pop("target")
    samples = tuple(fields["samples"])
    return Measure(**{**fields, "samples": samples}, target=Target(**target) if target else None)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only")
    if not parser.parse_args().check:
        PAGE.write_text(page())
        print(f"wrote {PAGE}")
    elif PAGE.read_text() != page():
        sys.exit(f"{PAGE} is not what the results say: run python -m benchmarks.page")


if __name__ == "__main__":
    main()
