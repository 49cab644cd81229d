"""The picture of the comparison: quality against model calls."""

from __future__ import annotations

from pathlib import Path

from .table import FEWER, OURS, PUBLISHED, Book
from .videos import REFERENCES

_STYLES = {FEWER: ("--", "o"), PUBLISHED: (":", "s"), OURS: ("-", "D")}


def plot(book: Book, path: Path) -> None:
    """One panel per model and reference, one line per way."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    models = list(book.content)
    figure, panels = pyplot.subplots(
        len(REFERENCES), len(models), figsize=(4 * len(models) + 3, 7), layout="constrained",
        squeeze=False, sharex=True,
    )  # fmt: skip
    labels: dict[str, str] = {}
    for column, model in enumerate(models):
        ways: dict[str, list[tuple[int, float, float]]] = {}
        groups: dict[str, str] = {}
        for line, reference in enumerate(REFERENCES):
            ways.clear()
            for name, computed, rows, _ in book.tables():
                for row in rows if name == model else ():
                    score = row.score(reference)
                    point = (computed, score.mean, score.half_width)
                    ways.setdefault(row.label, []).append(point)
                    groups[row.label] = row.group
            axes = panels[line][column]
            for number, (label, points) in enumerate(ways.items()):
                color = labels.setdefault(label, f"C{len(labels)}")
                style, mark = _STYLES[groups[label]]
                calls, means, widths = zip(*points, strict=True)
                aside = [call + 0.05 * (number - len(ways) / 2) for call in calls]
                wide = 2.2 if groups[label] == OURS else 1.2
                axes.errorbar(
                    aside, means, widths, color=color, linestyle=style, marker=mark, markersize=4,
                    linewidth=wide, elinewidth=0.5, label=label,
                )  # fmt: skip
            axes.set_title(f"{model}: to {reference}", fontsize=10)
            axes.grid(alpha=0.3)
            axes.set_xticks(sorted({point[0] for points in ways.values() for point in points}))
            if line == len(REFERENCES) - 1:
                axes.set_xlabel("model calls, of 30")
            if column == 0:
                axes.set_ylabel("PSNR, dB")
    shown = {}
    for axes in panels.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            shown.setdefault(label, handle)
    figure.legend(shown.values(), shown.keys(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
