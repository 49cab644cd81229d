"""Text for a terminal of 80 columns: units, wrapped lines."""

from __future__ import annotations

import textwrap
from html import escape

WIDTH = 80
_UNITS = ("B", "KiB", "MiB", "GiB")


class ShownAsText:
    """Notebooks show the text of such an object, not its fields."""

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def wrapped(text: str, indent: str = "  ") -> list[str]:
    """The lines of a text. All but the first are indented; words are never broken."""
    return textwrap.wrap(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def keep_end(text: str, width: int) -> str:
    """Shorten a name. The end of a path tells it from others."""
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


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
