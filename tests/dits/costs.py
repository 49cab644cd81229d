"""What a step that reuses computes, as ``python -m benchmarks.reuse_cost --write`` printed it."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "reuse_cost.md"
COLUMNS = ("float32: a reuse step", "of its blocks", "bfloat16: a reuse step", "of its blocks")
_PLACES = (1, 3, 5, 7)  # of these columns in the file
_NONE = ("-",) * len(COLUMNS)


def costs() -> dict[str, tuple[str, ...]]:
    """Name of a model -> its cells; ``-`` where nothing was counted."""
    lines = [line for line in RESULTS.read_text().splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]
    return {row[0]: tuple(map(_figure, (row[place] for place in _PLACES))) for row in rows}


def cells_of(name: str, known: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The cells of a model."""
    return known.get(name, _NONE)


def _figure(cell: str) -> str:
    return cell if cell.endswith("%") else "-"
