"""Text for a terminal: its width, units, wrapped lines."""

from __future__ import annotations

import textwrap
from contextvars import ContextVar
from html import escape

WIDTH = 80
"""Columns of a text, unless a narrower terminal shows it."""
_NARROWEST = 20
_width: ContextVar[int] = ContextVar("_width", default=WIDTH)
_UNITS = ("B", "KiB", "MiB", "GiB")


def width() -> int:
    """Columns that a line of a text may have."""
    return _width.get()


def fit(columns: int) -> None:
    """Let texts fit a terminal, from now on. They are never wider than usual.

    Args:
        columns: of the terminal.
    """
    _width.set(max(min(columns, WIDTH), _NARROWEST))


class ShownAsText:
    """Notebooks show the text of such an object, not its fields."""

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def wrapped(text: str, indent: str = "  ") -> list[str]:
    """The lines of a text. All but the first are indented; words are never broken."""
    return textwrap.wrap(
        text, width(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def keep_end(text: str, most: int) -> str:
    """Shorten a name. The end of a path tells it from others."""
    return text if len(text) <= most else "…" + text[len(text) - most + 1 :]


def byte_unit(largest: int) -> tuple[str, int]:
    """The unit for sizes of which this is the largest, and its bytes."""
    power = 0
    while power + 1 < len(_UNITS) and largest >= 1024 ** (power + 1):
        power += 1
    return _UNITS[power], 1024**power


def flop_unit(largest: int) -> tuple[str, float]:
    """The unit for numbers of operations of which this is the largest, and its operations."""
    for unit, size in (("TFLOP", 1e12), ("GFLOP", 1e9)):
        if largest >= size:
            return unit, size
    return "MFLOP", 1e6
