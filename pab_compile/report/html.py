"""Parts of pages: cards, tables, versions, and the document around them."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from html import escape
from importlib.metadata import PackageNotFoundError, version

from .page_style import SCRIPT, STYLE

_PACKAGES = ("pab_compile", "torch", "diffusers", "transformers")


def cards(values: Iterable[tuple[str, str]]) -> str:
    """Numbers with their names."""
    shown = (
        f'<div class="card"><b{_small(value)}>{escape(value)}</b><span>{escape(name)}</span></div>'
        for name, value in values
    )
    return f'<div class="cards">{"".join(shown)}</div>'


def _small(value: str) -> str:
    """The attribute of a value that would not fit in one line."""
    return ' class="long"' if len(value) > 9 else ""


def row(
    tag: str,
    cells: Sequence[str],
    numbers: Sequence[int] = (),
    more: str = "",
    labels: Sequence[str] = (),
) -> str:
    """A row of a table.

    Args:
        tag: ``th`` or ``td``.
        cells: their texts.
        numbers: the places of numbers.
        more: attributes of the row.
        labels: the headings, which narrow screens show beside the cells.
    """

    def said(place: int) -> str:
        label = f' data-label="{escape(labels[place])}"' if labels and cells[place] else ""
        if place in numbers:
            return f' class="n"{label}'
        return f' class="why"{label}' if place == 6 and tag == "td" else label

    shown = (f"<{tag}{said(n)}>{escape(cell)}</{tag}>" for n, cell in enumerate(cells))
    return f"<tr{more}>{''.join(shown)}</tr>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table that scrolls on its own where it is too wide."""
    lines = [row("th", head, numbers), *(row("td", cells, numbers) for cells in rows)]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def versions() -> dict[str, str]:
    """What makes a run again."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    now = datetime.now(timezone.utc)
    return {**found, "page made": now.strftime("%Y-%m-%d %H:%M UTC")}


def document(title: str, sections: Iterable[str], data: Mapping[str, object]) -> str:
    """The whole page. It loads nothing.

    Args:
        title: its title.
        sections: what it shows.
        data: all numbers, for programs.
    """
    body = "\n".join(sections)
    text = json.dumps(data).replace("</", "<\\/")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n"
        f'<script type="application/json" id="data">{text}</script>\n'
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
