"""The sites of a model as a picture: DOT for other tools, and SVG.

There is one column per kind. The picture reads like a page: from left to right, then the next row.
The line runs through the boxes in the order in which they add to the residual stream. Filled boxes
are broadcast. Hollow boxes are computed at every step. Only sites are drawn, so that a model with a
hundred attentions stays readable. No other program is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

_COLOURS = {  # kind -> (line, fill)
    "spatial": ("#1f6fb4", "#dbeaf7"),
    "temporal": ("#c2570c", "#fde6d3"),
    "cross": ("#2e7d32", "#dcf0dd"),
    "full": ("#6a3d9a", "#e8def4"),
    "joint": ("#00838f", "#d5f0f2"),
    "text": ("#8d6e00", "#fbf1cc"),
    "mlp": ("#5d4037", "#ebe0db"),
}
_OTHER_COLOUR = ("#555555", "#e6e6e6")

# Pixels.
_BOX_WIDTH = 260
_COLUMN_GAP = 36
_ROW_GAP = 26
_MARGIN = 28
_HEADER_HEIGHT = 92
_STUB = 34  # length of the stream before the first and after the last site
_LINE_HEIGHT = 15
_PADDING = 9
_FONT_SIZE = 11
_CHARACTERS = int((_BOX_WIDTH - 2 * _PADDING) / (0.602 * _FONT_SIZE))


@dataclass(frozen=True)
class SiteBox:
    """One site as it is drawn.

    Attributes:
        name: unique name of the site.
        kind: chooses its colour and its column.
        lines: more about it, one short text per line.
        range: computed at every ``range``-th step; 1 is every step.
        cache_bytes: bytes of its cached tensors; 0 if nothing is cached.
    """

    name: str
    kind: str
    lines: tuple[str, ...]
    range: int
    cache_bytes: int

    @property
    def rhythm(self) -> str:
        """How often it is computed, and the bytes of its cache: ``every 2nd step, 24.0 MiB``."""
        if self.range <= 1:
            return "every step"
        size = f", {format_bytes(self.cache_bytes)}" if self.cache_bytes else ""
        return f"every {_ordinal(self.range)} step{size}"


def format_bytes(num_bytes: int) -> str:
    """A size with a unit: ``512 B``, ``24.0 MiB``, ``5.906 GiB``."""
    if num_bytes < 1024:
        return f"{num_bytes} B"
    for power, unit, digits in ((1, "KiB", 1), (2, "MiB", 1), (3, "GiB", 3)):
        if num_bytes < 1024 ** (power + 1) or unit == "GiB":
            return f"{num_bytes / 1024**power:.{digits}f} {unit}"
    raise AssertionError("unreachable")


def to_dot(boxes: Sequence[SiteBox]) -> str:
    """The sites, in model order, as a Graphviz graph. Sites of one row have the same rank."""
    lines = [
        "digraph sites {",
        '  label="' + _dot_escape(_title(boxes)) + '"; labelloc=t; fontname="monospace";',
        '  node [shape=box, fontname="monospace", fontsize=10];',
        '  stream_in [shape=plaintext, label="in"];',
        '  stream_out [shape=plaintext, label="out"];',
    ]
    for index, box in enumerate(boxes):
        line, fill = _colours(box)
        label = "\\l".join(_dot_escape(text) for text in (box.name, box.kind, *_body(box))) + "\\l"
        lines.append(
            f'  site_{index} [label="{label}", color="{line}", style=filled, fillcolor="{fill}"];'
        )
    for row in _rows(boxes):
        members = "; ".join(f"site_{index}" for index, _ in row)
        lines.append(f"  {{ rank=same; {members}; }}")
    chain = ["stream_in", *(f"site_{index}" for index in range(len(boxes))), "stream_out"]
    return "\n".join([*lines, "  " + " -> ".join(chain) + ";", "}"]) + "\n"


def to_svg(boxes: Sequence[SiteBox]) -> str:
    """The sites, in model order, as an SVG picture."""
    kinds = _kinds(boxes)
    width = 2 * _MARGIN + max(len(kinds), 2) * (_BOX_WIDTH + _COLUMN_GAP) - _COLUMN_GAP
    places, bottom = _place(boxes)
    height = bottom + _STUB + _MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-size="{_FONT_SIZE}" '
            'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace">',
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" '
            'markerHeight="6" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#888"/></marker>'
            "</defs>",
            '<rect width="100%" height="100%" fill="white"/>',
            _text(_MARGIN, _MARGIN + 4, _title(boxes), 'font-size="14" font-weight="bold"'),
            *_legend(boxes),
            *_stream(places, bottom),
            *(line for place in places for line in _box(place)),
            "</svg>",
        ]
    )


@dataclass(frozen=True)
class _Place:
    """A box and where it is, in pixels."""

    box: SiteBox
    row: int
    x: int
    y: int
    height: int

    @property
    def middle(self) -> int:
        return self.x + _BOX_WIDTH // 2


def _kinds(boxes: Sequence[SiteBox]) -> list[str]:
    return list(dict.fromkeys(box.kind for box in boxes))


def _rows(boxes: Sequence[SiteBox]) -> list[list[tuple[int, SiteBox]]]:
    """Sites by row. A new row begins if the next site is not to the right."""
    column_of = {kind: column for column, kind in enumerate(_kinds(boxes))}
    rows: list[list[tuple[int, SiteBox]]] = []
    last = len(column_of)
    for index, box in enumerate(boxes):
        if column_of[box.kind] <= last:
            rows.append([])
        rows[-1].append((index, box))
        last = column_of[box.kind]
    return rows


def _place(boxes: Sequence[SiteBox]) -> tuple[list[_Place], int]:
    """The place of each box, and the end of the last row."""
    column_of = {kind: column for column, kind in enumerate(_kinds(boxes))}
    places: list[_Place] = []
    y = _MARGIN + _HEADER_HEIGHT + _STUB
    for number, row in enumerate(_rows(boxes)):
        heights = [2 * _PADDING + _LINE_HEIGHT * (1 + len(_body(box))) for _, box in row]
        for (_, box), height in zip(row, heights, strict=True):
            x = _MARGIN + column_of[box.kind] * (_BOX_WIDTH + _COLUMN_GAP)
            places.append(_Place(box, number, x, y, height))
        y += max(heights) + _ROW_GAP
    return places, y - _ROW_GAP if places else y


def _legend(boxes: Sequence[SiteBox]) -> Iterator[str]:
    """One entry above each column: kind, number of sites, and bytes of their caches."""
    yield _text(
        _MARGIN,
        _MARGIN + 24,
        "filled: broadcast    hollow: computed at every step    line: order of execution",
        'fill="#555"',
    )
    for column, kind in enumerate(_kinds(boxes)):
        members = [box for box in boxes if box.kind == kind]
        line, fill = _COLOURS.get(kind, _OTHER_COLOUR)
        x, y = _MARGIN + column * (_BOX_WIDTH + _COLUMN_GAP), _MARGIN + 44
        yield f'<rect x="{x}" y="{y}" width="12" height="12" fill="{fill}" stroke="{line}"/>'
        yield _text(x + 18, y + 10, kind, f'font-weight="bold" fill="{line}"')
        count = f"{len(members)} sites" if len(members) > 1 else "1 site"
        cached = sum(box.cache_bytes for box in members if box.range > 1)
        yield _text(x, y + 28, f"{count}, {format_bytes(cached)} cached", 'fill="#555"')


def _stream(places: Sequence[_Place], bottom: int) -> Iterator[str]:
    """The line: into the first box, from box to box, out of the last."""
    if not places:
        return
    first, last = places[0], places[-1]
    yield _text(first.middle + 8, first.y - _STUB + 12, "in", 'fill="#888"')
    yield _path(f"M{first.middle} {first.y - _STUB} V{first.y}")
    for here, there in pairwise(places):
        if here.row == there.row:
            y = here.y + min(here.height, there.height) // 2
            yield _path(f"M{here.x + _BOX_WIDTH} {y} H{there.x}")
        else:
            turn = there.y - _ROW_GAP // 2 - 2
            yield _path(f"M{here.middle} {here.y + here.height} V{turn} H{there.middle} V{there.y}")
    yield _path(f"M{last.middle} {last.y + last.height} V{bottom + _STUB}")
    yield _text(last.middle + 8, bottom + _STUB, "out", 'fill="#888"')


def _box(place: _Place) -> Iterator[str]:
    box, x = place.box, place.x
    line, fill = _colours(box)
    yield f"<g><title>{escape(chr(10).join((box.name, box.kind, *_body(box))))}</title>"
    yield (
        f'<rect x="{x}" y="{place.y}" width="{_BOX_WIDTH}" height="{place.height}" rx="4" '
        f'fill="{fill}" stroke="{line}" stroke-width="1.5"/>'
    )
    y = place.y + _PADDING + 11
    yield _text(x + _PADDING, y, _keep_end(box.name), f'font-weight="bold" fill="{line}"')
    for text in _body(box):
        y += _LINE_HEIGHT
        yield _text(x + _PADDING, y, _keep_start(text), 'fill="#222"')
    yield "</g>"


def _body(box: SiteBox) -> tuple[str, ...]:
    return (*box.lines, box.rhythm)


def _colours(box: SiteBox) -> tuple[str, str]:
    line, fill = _COLOURS.get(box.kind, _OTHER_COLOUR)
    return line, fill if box.range > 1 else "#ffffff"


def _title(boxes: Sequence[SiteBox]) -> str:
    broadcast = [box for box in boxes if box.range > 1]
    cached = format_bytes(sum(box.cache_bytes for box in broadcast))
    return f"{len(boxes)} sites, {len(broadcast)} broadcast, {cached} cached"


def _ordinal(number: int) -> str:
    teen = number % 100 in (11, 12, 13)
    return f"{number}" + ("th" if teen else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th"))


def _keep_end(text: str) -> str:
    """Shorten a path. Its last parts distinguish it from others."""
    return text if len(text) <= _CHARACTERS else "…" + text[-(_CHARACTERS - 1) :]


def _keep_start(text: str) -> str:
    return text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…"


def _dot_escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _text(x: int, y: int, text: str, style: str) -> str:
    return f'<text x="{x}" y="{y}" {style} xml:space="preserve">{escape(text)}</text>'


def _path(data: str) -> str:
    return f'<path d="{data}" fill="none" stroke="#888" stroke-width="1.5" marker-end="url(#tip)"/>'
