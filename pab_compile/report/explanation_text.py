"""An explanation as text: a headline, a table whose totals add up, and why sites compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pab_compile.passes.sites.site import OUTPUT

from .draw import format_bytes
from .explanation import SiteReport, group_name, similar
from .table import table_lines
from .text import byte_unit, flop_unit, keep_end, width, wrapped

if TYPE_CHECKING:
    from .explanation import Explanation

_LEGEND = (
    "every: 1 computes at every step, n at every n-th; cache: of one call of a step; "
    "share: of the operations of a call that computes."
)
_SUM_LEGEND = "Sites that are reused together cache one sum, which is in the row of its first site."


def headline(found: Explanation) -> str:
    """What was found, in a line or two."""
    counted = ", ".join(f"{number} {kind}" for kind, number in found.counts().items())
    counted = counted or ("the whole output" if found.sites[0].kind == OUTPUT else "no attention")
    return (
        f"{counted}; latents {found.latents!r}, clock {found.clock!r}; "
        f"caches {format_bytes(found.cache_bytes)} per call"
    )


def explanation_lines(found: Explanation) -> list[str]:
    """The lines of an explanation, as wide as ``width`` where names allow it."""
    groups = similar(found.sites)
    lines = [*wrapped(headline(found)), *_reuse_lines(found), *_table(found, groups)]
    lines += wrapped(_LEGEND)
    lines += wrapped(_SUM_LEGEND) if any(site.kept_with for site in found.sites) else []
    if found.num_calls is not None and found.num_calls > 1:
        together = format_bytes(found.num_calls * found.cache_bytes)
        lines.append(f"The {found.num_calls} calls of a step cache {together} together.")
    always = [group for group in groups if group[0].range == 1]
    lines += ["Computed at every step:"] if always else []
    for group in always:
        lines += _said(group, group[0].reason)
    said = [group for group in groups if group[0].branch and group not in always]
    lines += ["Residual branches:"] if said else []
    for group in said:
        lines += _said(group, group[0].branch)
    if found.num_graphs > 1:
        lines.append(f"The forward runs as {found.num_graphs} graphs; Dynamo broke it up at:")
        for reason in found.breaks:
            lines += wrapped(f"  {reason}", "    ")
    for note in found.notes:
        lines += wrapped(f"Note: {note}")
    return lines


def _reuse_lines(found: Explanation) -> list[str]:
    reused = sum(site.is_reused for site in found.sites)
    line = f"The plan reuses {reused} of {len(found.sites)} sites."
    if found.total_flops and reused:
        share = found.reuse_flops / found.total_flops
        line += f" A step that reuses all of them computes {share:.0%} of the operations."
    return wrapped(line)


def _said(group: Sequence[SiteReport], text: str) -> list[str]:
    return wrapped(f"  {group_name(group)} ({group[0].kind}): {text}", "    ")


def _table(found: Explanation, groups: Sequence[Sequence[SiteReport]]) -> list[str]:
    sizes = [sum(site.cache_bytes for site in group) for group in groups]
    flops = [sum(site.flops for site in group) for group in groups]
    unit, size = byte_unit(found.cache_bytes)
    flop_name, flop = flop_unit(max(found.total_flops, 1))
    digits = 0 if size == 1 else 2
    rows = [
        (
            group[0].kind,
            keep_end(group[0].mixes, 16),
            "plan" if group[0].range is None else str(group[0].range),
            f"{num_bytes / size:.{digits}f}",
            f"{number / flop:.1f}",
            _share(number, found.total_flops),
        )
        for group, num_bytes, number in zip(groups, sizes, flops, strict=True)
    ]
    total = (f"{sum(sizes) / size:.{digits}f}", f"{sum(flops) / flop:.1f}")
    rows.append(("", "", "", *total, _share(sum(flops), found.total_flops)))
    headings = ("kind", "mixes", "every", f"cache {unit}", flop_name, "share")
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    room = width() - 2 - sum(each + 2 for each in widths)
    names = [*(_short(group, room) for group in groups), "all"]
    named = [(name, *row) for name, row in zip(names, rows, strict=True)]
    return table_lines(("sites", *headings), named, num_left=3, width=width())


def _short(group: Sequence[SiteReport], most: int) -> str:
    before = f"{len(group)} like " if len(group) > 1 else ""
    return before + keep_end(group[0].name, max(most - len(before), 8))


def _share(number: int, total: int) -> str:
    return f"{number / total:.1%}" if total else "-"
