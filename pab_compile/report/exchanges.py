"""Exchanges: what ranks sent to each other, per call of the model, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .draw import format_bytes

if TYPE_CHECKING:
    from .timeline import Timeline

OUTSIDE_OF_SITES = "outside of sites"


@dataclass(frozen=True)
class Exchanged:
    """Collectives that are of one kind and made in one way.

    Attributes:
        kind: of the site that needs them, or another name.
        how: ``all-to-all``, ``all-gather`` or another collective.
        collectives: how many.
        sent_bytes: bytes that this rank sent to other ranks.
        among: what their ranks share: ``tokens``, ``batch``, ``calls``; ``""`` if that is unknown.
        by_rank: the same bytes for each of these ranks; empty if they are unknown.
    """

    kind: str
    how: str
    collectives: int
    sent_bytes: int
    among: str = ""
    by_rank: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        """What rows have in common that are added up."""
        return self.kind, self.how, self.among

    def plus(self, other: Exchanged) -> Exchanged:
        """Both together."""
        known = len(self.by_rank) == len(other.by_rank)
        pairs = zip(self.by_rank, other.by_rank, strict=True) if known else ()
        return replace(
            self,
            collectives=self.collectives + other.collectives,
            sent_bytes=self.sent_bytes + other.sent_bytes,
            by_rank=tuple(a + b for a, b in pairs),
        )


def added_up(exchanged: Iterable[Exchanged]) -> tuple[Exchanged, ...]:
    """One row per kind and way, in the order in which they came."""
    found: dict[tuple[str, str, str], Exchanged] = {}
    for row in exchanged:
        found[row.key] = found[row.key].plus(row) if row.key in found else row
    return tuple(found.values())


@dataclass(frozen=True)
class Calls:
    """Some calls of a generation.

    Attributes:
        number: how many.
        rows: what they exchanged.
    """

    number: int
    rows: Mapping[tuple[str, str, str], Exchanged] = field(default_factory=dict)

    def per_call(self, key: tuple[str, str, str] | None = None) -> str:
        """Bytes and collectives of a call on average: of one row, or of all."""
        rows = [row for name, row in self.rows.items() if key in (None, name)]
        if not self.number:
            return "-"
        collectives = sum(row.collectives for row in rows) / self.number
        return _in(sum(row.sent_bytes for row in rows) / self.number, collectives)


def _in(sent: float, collectives: float) -> str:
    """Bytes, and in how many collectives."""
    return f"{format_bytes(round(sent))} in {collectives:.4g}" if collectives else "nothing"


class Exchanges:
    """What a rank exchanged in a generation.

    Args:
        timeline: of the generation.

    Attributes:
        rows: all of it.
        computing: of the calls at which every site computed.
        reusing: of the other calls.
    """

    def __init__(self, timeline: Timeline) -> None:
        computing = [call for call in timeline.calls if call.computes_all]
        reusing = [call for call in timeline.calls if not call.computes_all]
        self.rows = added_up(row for call in timeline.calls for row in call.exchanged)
        self.computing, self.reusing = (
            Calls(len(calls), {row.key: row for row in added_up(_rows_of(calls))})
            for calls in (computing, reusing)
        )

    @property
    def sent_bytes(self) -> int:
        """Bytes that this rank sent to other ranks."""
        return sum(row.sent_bytes for row in self.rows)

    @property
    def collectives(self) -> int:
        """How many collectives it took part in."""
        return sum(row.collectives for row in self.rows)

    @property
    def by_rank(self) -> tuple[int, ...]:
        """Bytes that each rank sent; empty if that is not known of every collective."""
        numbers = {len(row.by_rank) for row in self.rows}
        groups = {row.among for row in self.rows}
        if len(numbers) != 1 or len(groups) != 1:
            return ()
        return tuple(map(sum, zip(*(row.by_rank for row in self.rows), strict=True)))

    def line(self) -> str:
        """What was exchanged, in one line; ``""`` if nothing was."""
        if not self.rows:
            return ""
        parts = [
            f"; a call that {what}: {calls.per_call()}"
            for what, calls in (("computes all", self.computing), ("reuses", self.reusing))
            if calls.number
        ]
        return (
            f"this rank sent {format_bytes(self.sent_bytes)} to other ranks in {self.collectives} "
            f"collectives{''.join(parts)}"
        )

    def table(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        """Headings and rows: what a call that computes sends, and one that reuses."""
        head = (
            "for",
            "collectives",
            "sent in a call that computes all",
            "in a call that reuses",
            "in the generation",
        )
        rows: list[Sequence[str]] = [
            (
                row.kind,
                row.how,
                self.computing.per_call(row.key),
                self.reusing.per_call(row.key),
                _in(row.sent_bytes, row.collectives),
            )
            for row in self.rows
        ]
        total = _in(self.sent_bytes, self.collectives)
        all_ = ("all", "", self.computing.per_call(), self.reusing.per_call(), total)
        return head, [*rows, all_]


def _rows_of(calls: Iterable[Any]) -> Iterable[Exchanged]:
    return (row for call in calls for row in call.exchanged)
