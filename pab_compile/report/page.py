"""A page about one generation: what was computed, what was reused, and why not more.

The page is one file. It loads nothing, so it can be sent or kept beside the videos.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape

from .draw import SiteBox, format_bytes, to_svg
from .exchanges import Exchanges
from .explanation import Explanation, SiteReport, group_name, similar, site_boxes
from .films import films
from .heat_map import COLOURS, MEANINGS, heat_map, strip_style
from .html import cards, document, row, table, versions
from .measured import Measured
from .plots import curves, sent_plot, timeline_plots
from .run_stats import RunStats, saved_operations
from .text import byte_unit, flop_unit
from .timeline import COMPUTED, Row, Timeline

_ALIGNED = (  # notebooks align all cells to the right
    "<style>.pab td,.pab th{text-align:left!important}.pab .n{text-align:right!important}</style>"
)
_NUMBER = re.compile(r"-?\d[\d.]*(?: ± [\d.]+)?(?: dB)?")
_MOST_DRAWN = 120  # sites; more are drawn as one box per group of equal ones


def run_page(stats: RunStats, title: str = "", given: Measured | None = None) -> str:
    """The page of a generation.

    Args:
        stats: its statistics.
        title: the title.
        given: what was measured besides.
    """
    given = given or Measured()
    title = title or "Pyramid Attention Broadcast: one generation"
    found, timeline = stats.explanation, stats.timeline
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">{escape(stats.headline)}</p>',
        cards(_headline(stats, given.speed, given.quality)),
        *films(given.videos),
        *(f'<p class="note">{escape(note)}</p>' for note in stats.notes),
        "<h2>Sites by steps</h2>",
        "<p>A row is a site of the model, and a place in it is a step. "
        "Equal rows are folded: open them, or filter.</p>",
        heat_map(timeline if found is None else _with_all_sites(timeline, found)),
        *timeline_plots(timeline),
        *_exchanged(timeline),
        *curves(given.curves),
        *([] if found is None else _found(found)),
        "<h2>To reproduce it</h2>",
        table(("option", "value"), stats.options.items() or [("none", "the defaults")]),
        "<p></p>",
        table(("package", "version"), versions().items()),
    ]
    return document(title, sections, {**stats.to_json(), **given.to_json()})


def run_fragment(stats: RunStats) -> str:
    """What notebooks show of a generation: its numbers and a strip per kind."""
    strips: dict[tuple[str, str], int] = {}
    for site, strip in zip(stats.timeline.sites, stats.timeline.strips(), strict=True):
        strips[site.kind, strip] = strips.get((site.kind, strip), 0) + 1
    lines = [
        f'<div style="display:flex;gap:10px;align-items:center"><code style="width:150px">'
        f"{number} {escape(kind)}</code>"
        f'<span style="flex:1;height:13px;border:1px solid #b8c4cf;{strip_style(strip)}"></span>'
        "</div>"
        for (kind, strip), number in strips.items()
    ]
    cards = "; ".join(f"{escape(name)} {escape(value)}" for name, value in _headline(stats))
    notes = "".join(f"<p>note: {escape(note)}</p>" for note in stats.notes)
    key = "".join(
        f'<span style="margin-left:1em"><span style="display:inline-block;width:11px;height:11px;'
        f'background:{COLOURS[letter]}"></span> {text}</span>'
        for letter, text in MEANINGS.items()
        if any(letter in strip for _, strip in strips)
    )
    said = f"<p><b>{escape(stats.headline)}</b> {cards}</p>"
    return f'<div>{said}{"".join(lines)}<p style="text-align:right">{key}</p>{notes}</div>'


def explanation_fragment(found: Explanation) -> str:
    """What notebooks show of an explanation."""
    from .explanation_text import headline

    notes = "".join(f"<p>{escape(note)}</p>" for note in found.notes)
    said = f"<p><b>{escape(headline(found))}</b></p>"
    return f'<div class="pab">{_ALIGNED}{said}{_sites(found)}{notes}</div>'


def _headline(
    stats: RunStats, speed: float | None = None, quality: str = ""
) -> Iterator[tuple[str, str]]:
    if speed is not None:
        yield "speed", f"{speed:.2f}x"
    yield from map(_named, filter(None, quality.split(", ")))
    full = sum(set(step) == {COMPUTED} for step in _letters(stats.timeline))
    yield "steps that compute everything", f"{full} of {stats.steps}"
    yield "runs of sites that were reused", f"{stats.reused_share:.0%}"
    if (saved := saved_operations(stats)) is not None:
        yield "operations left out", f"{saved:.0%}"
    yield "most bytes in caches", format_bytes(stats.peak_cache_bytes)
    if stats.peak_host_bytes:
        yield "most bytes on the host", format_bytes(stats.peak_host_bytes)
    if not math.isnan(stats.seconds_per_step):
        yield "per step (median)", f"{stats.seconds_per_step:.3g} s"


def _named(quality: str) -> tuple[str, str]:
    """A name and a number: of ``32.5 dB PSNR`` or ``SSIM 0.98``."""
    if (number := _NUMBER.search(quality)) is None:
        return "quality", quality
    name = " ".join((quality[: number.start()] + quality[number.end() :]).split())
    return name or "quality", number[0]


def _with_all_sites(timeline: Timeline, found: Explanation) -> Timeline:
    """The timeline, with the sites that have no branch. They compute at every call."""
    known = {row.name for row in timeline.sites}
    more = [Row(site.name, site.kind) for site in found.sites if site.name not in known]
    calls = [replace(call, states=call.states + COMPUTED * len(more)) for call in timeline.calls]
    return replace(timeline, sites=(*timeline.sites, *more), calls=tuple(calls))


def _exchanged(timeline: Timeline) -> Iterator[str]:
    """What this rank exchanged with others, and what all of them sent where that is known."""
    found = Exchanges(timeline)
    if not found.rows:
        return
    yield from sent_plot(timeline)
    head, rows = found.table()
    lines = [row("th", head, (2, 3, 4)), *(row("td", r, (2, 3, 4), labels=head) for r in rows)]
    yield (
        "<p>What this rank sent, on average, and in how many collectives. Bytes that stay on the "
        "rank do not count. Neither does what the ranks compare before a step.</p>"
    )
    yield f'<div class="wide"><table class="sites">{"".join(lines)}</table></div>'
    every = found.by_rank
    if every:
        shown = [(f"rank {rank}", format_bytes(sent)) for rank, sent in enumerate(every)]
        yield "<p>All ranks that share with this one, in the generation:</p>"
        yield table(("rank", "sent"), [*shown, ("all", format_bytes(sum(every)))], (1,))
    else:
        yield '<p class="quiet">What other ranks sent is not known on this one.</p>'


def _letters(timeline: Timeline) -> Iterator[tuple[str, ...]]:
    """Per step, the letter of every site."""
    return zip(*timeline.strips(), strict=True)


def _found(found: Explanation) -> Iterator[str]:
    yield "<h2>What was found</h2>"
    yield (
        f"<p>Latents <code>{escape(found.latents)}</code>, "
        f"clock <code>{escape(found.clock)}</code>. "
        "Equal sites have one row. The last column says how a site was recognised, and why it is "
        "not reused if it is not. The filter above holds for this table too.</p>"
    )
    yield f'<div class="wide">{_sites(found)}</div>'
    yield from (f'<p class="note">{escape(note)}</p>' for note in found.notes)
    drawn = _boxes(found.sites)
    yield "<h2>The way through the model</h2>"
    yield (
        "<p>Filled boxes are reused, hollow ones compute at every step. "
        f"{'Equal sites share a box.' if len(drawn) < len(found.sites) else ''}</p>"
    )
    yield f'<div class="wide drawing">{to_svg(drawn)}</div>'


def _boxes(sites: Sequence[SiteReport]) -> list[SiteBox]:
    if len(sites) <= _MOST_DRAWN:
        return site_boxes(sites)
    boxes = []
    for group in similar(sites):
        (box,) = site_boxes(group[:1])
        total = sum(site.cache_bytes for site in group)
        boxes.append(SiteBox(group_name(group), box.kind, box.lines, box.range, total))
    return boxes


def _sites(found: Explanation) -> str:
    groups = similar(found.sites)
    unit, size = byte_unit(found.cache_bytes)
    flop_name, flop = flop_unit(max(found.total_flops, 1))
    head = ("sites", "kind", "mixes", "every", f"cache {unit}", flop_name, "why")
    numbers = (3, 4, 5)
    lines = [row("th", head, numbers)]
    for group in groups:
        site, flops = group[0], sum(one.flops for one in group)
        cells = (
            group_name(group),
            site.kind,
            site.mixes,
            "plan" if site.range is None else str(site.range),
            f"{sum(one.cache_bytes for one in group) / size:.4g}",
            f"{flops / flop:.4g}",
            site.reason,
        )
        names = " ".join(one.name for one in group) if len(group) < 200 else site.name
        data = escape(f"{names} {site.kind} {site.reason}".lower(), quote=True)
        reuse = "reused" if site.is_reused else "never reused"
        more = f' data-find="{data}" data-kind="{escape(site.kind)}" data-reuse="{reuse}"'
        lines.append(row("td", cells, numbers, more, labels=head))
    total = sum(site.flops for site in found.sites)
    all_ = ("all", "", "", "", f"{found.cache_bytes / size:.4g}", f"{total / flop:.4g}", "")
    lines.append(row("td", all_, numbers, ' class="total"', labels=head))
    return f"<table class='sites'>{''.join(lines)}</table>"
