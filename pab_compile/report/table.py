"""Tables of plain text."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence


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
        width: most characters in a line.
    """
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
    Console(file=buffer, width=width, force_jupyter=False, color_system=None).print(table)
    return [line.rstrip() for line in buffer.getvalue().splitlines()]
