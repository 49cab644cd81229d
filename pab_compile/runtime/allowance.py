"""Allowance: which sites of one generation are cached under a budget (``plans.budget``)."""

from __future__ import annotations

from collections.abc import Sequence

from pab_compile.plans.budget import Claim, budget_line, chosen_or_narrowed
from pab_compile.plans.cache_dtype import NARROWEST

from .lane import Lanes
from .transfers import Transfers


class Allowance:
    """The sites of all graphs of a forward that share one budget.

    It is made anew when a graph or a lane is added, since both take memory of the others. What is
    not chosen any more is freed at once, or sent to the host.

    Attributes:
        is_narrow: whether what is cached is in the narrowest dtype.
    """

    def __init__(self) -> None:
        self._limit: int | None = None
        self._claims: dict[str, Sequence[Claim]] = {}
        self._num_lanes = 0
        self._kept: dict[str, frozenset[int]] = {}
        self._narrows = False
        self.is_narrow = False

    @property
    def limit(self) -> int | None:
        """Bytes for all lanes; None until the first graph ran."""
        return self._limit

    def begin(self, limit: int, narrows: bool = False) -> None:
        """Set the limit.

        Args:
            limit: in bytes.
            narrows: whether the narrowest dtype is taken if not everything fits.
        """
        self._limit, self._narrows = limit, narrows

    def sites_of(
        self,
        graph: str,
        claims: Sequence[Claim],
        lanes: Lanes,
        transfers: Transfers | None = None,
    ) -> frozenset[int]:
        """The positions of the sites of a graph that are cached on the device.

        Args:
            graph: its identity.
            claims: one per site.
            lanes: the lanes of the generation.
            transfers: send the others to the host; None if they are not cached.
        """
        num_lanes = max(self._num_lanes, len(lanes))
        if self._claims.get(graph) != claims or self._num_lanes != num_lanes:
            self._claims[graph] = claims
            self._num_lanes = num_lanes
            self._choose(lanes, transfers)
        return self._kept[graph]

    def note(self, is_sent: bool = False) -> str:
        """What is not cached on the device, or not as computed; ``""`` if everything is.

        Args:
            is_sent: whether the rest is cached in the memory of the host.
        """
        places = [(graph, n) for graph, each in self._claims.items() for n in range(len(each))]
        left = [self._claims[graph][n].name for graph, n in places if n not in self._kept[graph]]
        if not left and not self.is_narrow:
            return ""
        limit, is_narrow = self._limit or 0, self.is_narrow
        return budget_line(limit, self._num_lanes, len(places), left, is_sent, is_narrow)

    def _choose(self, lanes: Lanes, transfers: Transfers | None) -> None:
        assert self._limit is not None, "the budget has not begun"
        places = [(graph, n) for graph, each in self._claims.items() for n in range(len(each))]
        claims = [self._claims[graph][n] for graph, n in places]
        kept, self.is_narrow = chosen_or_narrowed(
            claims, self._limit, self._num_lanes, self._narrows
        )
        found = {places[n] for n in kept}
        self._kept = {
            graph: frozenset(n for n in range(len(each)) if (graph, n) in found)
            for graph, each in self._claims.items()
        }
        for lane in lanes:
            for key in [key for key in lane.cache if key[0] in self._kept and key not in found]:
                if transfers is None:
                    del lane.cache[key]
                else:
                    lane.cache[key].send(transfers)
            for entry in lane.cache.values() if self.is_narrow else ():
                entry.narrow(NARROWEST)
