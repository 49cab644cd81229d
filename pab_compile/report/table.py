"""Tables of plain text."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Iterator, Sequence

_WIDE = 10_000  # no table is cropped


def table_lines(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    num_left: int | None = None,
    title: str = "",
    width: int = 150,
) -> list[str]:
    """The lines of a table.

    Args:
        headings: one per column.
        rows: one cell per column. In a shorter row the last columns are empty.
        num_left: number of columns that are aligned left. The others are aligned right. None: all.
        title: a line above the table.
        width: most characters in a line. A wider table becomes a list: a paragraph for each row.
    """
    rows = [tuple(row) for row in rows]
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=title or None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for number, heading in enumerate(headings):
        is_left = num_left is None or number < num_left
        table.add_column(heading, justify="left" if is_left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    buffer = io.StringIO()
    Console(file=buffer, width=_WIDE, force_jupyter=False, color_system=None).print(table)
    lines = [line.rstrip() for line in buffer.getvalue().splitlines()]
    if max(map(len, lines)) <= width:
        return lines
    return [*([title] if title else []), *listed(headings, rows, width)]


def listed(headings: Sequence[str], rows: Iterable[Sequence[str]], width: int) -> Iterator[str]:
    """Rows as paragraphs. The first cell is their title."""
    for first, *others in rows:
        yield ""
        yield from textwrap.wrap(first, width) or ["-"]
        for heading, cell in zip(headings[1:], others, strict=False):
            if cell:
                text = f"{heading}: {cell}"
                yield from textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="    ")
    yield ""
