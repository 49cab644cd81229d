"""A row of calls, with the facts about its positions that the search for repeats needs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.structure import call_text, calls_key


class Row:
    """A row of calls.

    Args:
        calls: calls of one graph in an order in which they may run.
        sites: the calls of every site among them.

    Attributes:
        texts: a number per call; equal calls have equal numbers.
        in_site: positions of the calls that belong to a site.
        ends: positions of the last call of every site.
        crossing: per position, the bytes that are computed before it and read there or later.
    """

    def __init__(self, calls: Sequence[fx.Node], sites: Sequence[Sequence[fx.Node]]) -> None:
        self._calls = calls
        numbers: dict[str, int] = {}
        self.texts = [numbers.setdefault(call_text(n), len(numbers)) for n in calls]
        position = {node: index for index, node in enumerate(calls)}
        self.in_site = {position[node] for site in sites for node in site}
        self.ends = sorted({max(position[node] for node in site) for site in sites if site})
        self.crossing = _crossing_bytes(calls, position)
        self._keys: dict[range, Any] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def has_end(self, piece: range) -> bool:
        """Whether a site ends in a piece."""
        return any(end in piece for end in self.ends)

    def may_cut(self, position: int) -> bool:
        """Whether a piece may start here. The outputs of a multi-output op stay with it."""
        return position >= len(self._calls) or not ir.is_getitem(self._calls[position])

    def texts_of(self, piece: range) -> list[int]:
        """The numbers of the calls of a piece."""
        return self.texts[piece.start : piece.stop]

    def key(self, piece: range) -> Any:
        """A key of a piece. Equal keys mean equal functions."""
        if piece not in self._keys:
            calls = self._calls[piece.start : piece.stop]
            self._keys[piece] = calls_key(calls, self.texts_of(piece))
        return self._keys[piece]


def _crossing_bytes(calls: Sequence[fx.Node], position: dict[fx.Node, int]) -> list[int]:
    """For every position, the bytes that are computed before it and read there or later."""
    change = [0] * (len(calls) + 2)
    for index, node in enumerate(calls):
        last = max((position.get(user, len(calls)) for user in node.users), default=index)
        change[index + 1] += ir.num_bytes(node)
        change[last + 1] -= ir.num_bytes(node)
    return list(itertools.accumulate(change))[: len(calls) + 1]
