"""A heat map of sites by steps, as HTML. Sites with equal rows are folded into one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from .page_style import COLOURS
from .timeline import COMPUTED, MEANINGS, Row, Timeline, runs

_MANY = 60  # rows; more scroll on their own, so that the rest of the page is near


def heat_map(timeline: Timeline) -> str:
    """The legend, the filter and a row per site."""
    strips = timeline.strips()
    looks = {strip: f"s{number}" for number, strip in enumerate(dict.fromkeys(strips))}
    kinds = list(dict.fromkeys(row.kind for row in timeline.sites))
    groups: dict[tuple[str, str], list[Row]] = {}
    for row, strip in zip(timeline.sites, strips, strict=True):
        groups.setdefault((row.kind, strip), []).append(row)
    return "\n".join(
        [
            f"<style>{''.join(_look(look, strip) for strip, look in looks.items())}</style>",
            _legend(timeline, strips),
            _filter(kinds),
            f'<div class="rows{" many" if len(groups) > _MANY else ""}">',
            *(_group(rows, _Strip(strip, looks[strip])) for (_, strip), rows in groups.items()),
            "</div>",
            _axis(timeline.steps),
        ]
    )


def strip_style(strip: str) -> str:
    """The background that shows the letters of a strip."""
    stops, position = [], 0
    for letter, length in runs(strip):
        start, position = position, position + length
        from_, to = (f"{100 * place / len(strip):.4g}%" for place in (start, position))
        stops.append(f"{COLOURS[letter]} {from_} {to}")
    return f"background:linear-gradient(90deg,{','.join(stops)})" if stops else ""


@dataclass(frozen=True)
class _Strip:
    letters: str
    look: str

    def html(self) -> str:
        return f'<span class="strip {self.look}" data-letters="{self.letters}"></span>'

    @property
    def reuse(self) -> str:
        return "never reused" if set(self.letters) <= {COMPUTED, " "} else "reused"


def _look(look: str, strip: str) -> str:
    return f".{look}{{{strip_style(strip)}}}"


def _group(rows: Sequence[Row], strip: _Strip) -> str:
    if len(rows) == 1:
        return _row(rows[0], strip)
    head = Row(f"{len(rows)} like {rows[0].name}", rows[0].kind)
    inside = "\n".join(_row(row, strip) for row in rows)
    return (
        f'<details class="group"><summary class="row">{_cells(head, strip)}</summary>\n'
        f"{inside}\n</details>"
    )


def _row(row: Row, strip: _Strip) -> str:
    found = escape(f"{row.name} {row.kind}".lower(), quote=True)
    data = f'data-find="{found}" data-kind="{escape(row.kind, quote=True)}"'
    return (
        f'<div class="row" {data} data-reuse="{strip.reuse}" data-count="1">'
        f"{_cells(row, strip)}</div>"
    )


def _cells(row: Row, strip: _Strip) -> str:
    name, kind = escape(row.name), escape(row.kind)
    return f'<span class="name">{name}</span><span class="kind">{kind}</span>{strip.html()}'


def _legend(timeline: Timeline, strips: Sequence[str]) -> str:
    meanings = escape(json.dumps(MEANINGS), quote=True)
    shown = "".join(
        f'<span><i style="background:{COLOURS[letter]}"></i>{text}</span>'
        for letter, text in MEANINGS.items()
        if any(letter in strip for strip in strips)
    )
    steps = escape(json.dumps(timeline.steps), quote=True)
    return (
        f'<div class="key">{shown}<span id="told" class="quiet" data-steps="{steps}" '
        f'data-meanings="{meanings}">point at a strip, or tap it, to read a step</span></div>'
    )


def _filter(kinds: Sequence[str]) -> str:
    options = "".join(_options(kinds))
    return (
        '<div class="filter"><input id="word" type="search" placeholder="part of a name" '
        f'aria-label="filter by name"><select id="kind" aria-label="filter by kind">{options}'
        '</select><span id="count" class="quiet"></span></div>'
    )


def _options(kinds: Sequence[str]) -> Iterator[str]:
    yield '<option value="">all sites</option>'
    for value in (*kinds, "reused", "never reused"):
        yield f'<option value="{escape(value, quote=True)}">{escape(value)}</option>'


def _axis(steps: Sequence[int]) -> str:
    if not steps:
        return ""
    return (
        f'<div class="axis steps"><span>step {steps[0]}</span><span>step {steps[-1]}</span></div>'
    )
