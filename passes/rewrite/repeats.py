"""Repeats: where a row of calls is cut, so that equal blocks become equal pieces.

A long row of calls is cut where it repeats. Here ``s``, ``c``, ``m``, ``t`` are the calls of whole
sites, and only the first block has ``P``::

    s c m P t m s c m t m s c m t m      the calls, in the order in which they run
            |---------|---------|        the shortest period that covers most of them
    [s c m][P][t m][s c m][t m][s c m][t m]

Find: in a *run* every call equals the call one period later. Periods are distances between equal
ends of sites. The shortest period that covers more than half of the calls is taken, otherwise the
one that covers the most. The calls on either side are searched in the same way.

Decide: a run that is not a whole number of periods has the form ``(U V) ... (U V) U``. It is cut
into these two *units*, so that its remainder needs no function of its own. Both ends of a run may
move to where the fewest bytes cross the cut, as long as no part of a site is lost. Units are also
looked for in the rests. What remains of a rest is one piece. If equal sites would be compiled more
than twice in it, it is cut after every site instead.

Units are equal only if their calls, layouts, wiring and results are equal. So a function that is
compiled for one is valid for all.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterator, Sequence

from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.sites.binding import Binding

from .row import Row


def in_running_order(graph: fx.Graph, within: Container[fx.Node] | None = None) -> list[fx.Node]:
    """The calls of a graph. A call that does not depend on the latents comes before its first use.

    Otherwise the first block would contain what all layers compute from the timestep. Outputs of a
    multi-output op stay with it. Ops with an effect, such as collectives, keep their order.

    Args:
        graph: the graph.
        within: only these calls; None for all.
    """
    calls = [node for node in ir.calls(graph) if within is None or node in within]
    number = {node: index for index, node in enumerate(calls)}
    place: dict[fx.Node, int] = {}
    for node in reversed(calls):
        place[node] = number[node]
        is_early = ir.binding(node) not in (None, Binding.LATENT) and not ir.must_stay(node)
        users = [place[user] for user in node.users if user in place]
        if is_early and users:
            place[node] = min(users)
    for node in calls:
        if ir.is_getitem(node):
            place[node] = place[node.all_input_nodes[0]]
    return sorted(calls, key=lambda node: (place[node], number[node]))


def cut_at_repeats(calls: Sequence[fx.Node], sites: Sequence[Sequence[fx.Node]]) -> list[range]:
    """Cut a row of calls into consecutive pieces, few and with few distinct ones.

    Args:
        calls: calls of one graph in an order in which they may run.
        sites: the calls of every site among them.

    Returns:
        Positions of the pieces, in order. Together they are all calls.
    """
    return _Search(Row(calls, sites)).cut()


class _Search:
    """The search for the pieces of a row of calls."""

    def __init__(self, row: Row) -> None:
        self._row = row

    def cut(self) -> list[range]:
        """The pieces."""
        found: list[tuple[range, bool]] = []
        self._search(range(len(self._row)), found)
        known = {self._row.key(piece): piece for piece, is_unit in found if is_unit}
        units = sorted(known.values(), key=lambda unit: (-len(unit), unit.start))
        pieces: list[range] = []
        for piece, is_unit in found:
            pieces += [piece] if is_unit else self._cut_rest(piece, units)
        return pieces

    def _search(self, rest: range, found: list[tuple[range, bool]]) -> None:
        """Split into the units of the best run, and search on either side of it."""
        units = self._best_run(rest)
        if not units:
            found += [(rest, False)] if rest else []
            return
        self._search(range(rest.start, units[0].start), found)
        found += [(unit, True) for unit in units]
        self._search(range(units[-1].stop, rest.stop), found)

    def _best_run(self, rest: range) -> list[range]:
        ends = [end for end in self._row.ends if end in rest]
        alike: dict[int, list[int]] = {}
        for end in ends:
            alike.setdefault(self._row.texts[end], []).append(end)
        pairs = (pair for row in alike.values() for pair in itertools.combinations(row, 2))
        best: list[range] = []
        covered = 0
        for period in sorted({b - a for a, b in pairs}):
            for run in self._runs(period, rest):
                if len(run) <= covered:
                    continue
                units = self._units(run, period)
                length = sum(map(len, units))
                if length > covered:
                    best, covered = units, length
            if 2 * covered > len(rest):
                break
        return best

    def _runs(self, period: int, rest: range) -> Iterator[range]:
        """The longest ranges in which every call equals the call one period later."""
        start = rest.start
        for index in range(rest.start, rest.stop - period + 1):
            is_end = index == rest.stop - period
            if is_end or self._row.texts[index] != self._row.texts[index + period]:
                if index - start >= period:
                    yield range(start, index + period)
                start = index + 1

    def _units(self, run: range, period: int) -> list[range]:
        """The units of a run: the longest series of equal periods."""
        bounds = self._bounds(run, period)
        if bounds is None:
            return []
        start, stop = bounds
        head = (stop - start) % period
        if not self._row.has_end(range(start, start + head)):
            start = self._narrowest(range(start, start + head + 1), period)
            head = 0
        cuts = [start, *([start + head] if head else [])]
        periods = [
            [range(a + first, b + first) for a, b in itertools.pairwise((*cuts, start + period))]
            for first in range(0, (stop - start) // period * period, period)
        ]
        groups = itertools.groupby(periods, lambda units: [self._row.key(unit) for unit in units])
        longest = max((list(group) for _, group in groups), key=len, default=[])
        return [unit for units in longest for unit in units] if len(longest) > 1 else []

    def _bounds(self, run: range, period: int) -> tuple[int, int] | None:
        """Both ends of a run, moved to where the fewest bytes cross. Its sites stay whole."""
        legal = [i for i in (*run, run.stop) if self._row.may_cut(i)]
        ends = [end for end in self._row.ends if end in run]
        if not ends or not legal:
            return None
        first = next(i for i in run if i in self._row.in_site)
        starts = [i for i in legal if i <= first] or legal[:1]
        legal = [i for i in legal if i - period in run and self._row.may_cut(i - period)]
        stops = [i for i in legal if i > ends[-1]] or legal[-1:]
        start = min(starts, key=lambda i: (self._row.crossing[i + period], i))
        stop = min(stops, key=lambda i: (self._row.crossing[i - period], -i))
        return (start, stop) if stop - start >= 2 * period else None

    def _narrowest(self, starts: range, period: int) -> int:
        legal = [i for i in starts if self._row.may_cut(i)]
        return min(legal, key=lambda i: (self._row.crossing[i + period], i))

    def _cut_rest(self, rest: range, units: Sequence[range]) -> list[range]:
        """Take units out of a rest. Every part between them becomes one piece."""
        pieces: list[range] = []
        start = at = rest.start
        while at < rest.stop:
            unit = next((u for u in units if self._is_at(u, at, rest.stop)), None)
            if unit is None:
                at += 1
                continue
            pieces += self._whole_or_by_site(range(start, at))
            pieces.append(range(at, at + len(unit)))
            start = at = at + len(unit)
        return pieces + self._whole_or_by_site(range(start, rest.stop))

    def _is_at(self, unit: range, at: int, stop: int) -> bool:
        there = range(at, at + len(unit))
        same = there.stop <= stop and self._row.texts_of(unit) == self._row.texts_of(there)
        return same and self._row.has_end(unit) and self._row.key(unit) == self._row.key(there)

    def _whole_or_by_site(self, rest: range) -> list[range]:
        cuts = [i for end in self._row.ends if end in rest for i in [end + 1] if i in rest]
        legal = [i for i in cuts if self._row.may_cut(i)]
        pieces = [
            range(a, b) for a, b in itertools.pairwise((rest.start, *legal, rest.stop)) if a < b
        ]
        distinct = {self._row.key(piece): len(piece) for piece in pieces}
        return pieces if len(rest) > 2 * sum(distinct.values()) else [rest] if rest else []
