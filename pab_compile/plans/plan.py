"""Plans: which site computes and which one reuses, at every step.

An *entry* is ``COMPUTE``, the order of the reuse, or the weights of the reuse. Order 0 repeats the
last computed output, as in the paper. Order 1 follows the line through the last two outputs. Order
2 follows the parabola through the last three. Weights give any combination of the last one to three
outputs, the oldest first. The rule of the paper is::

    reuse  <=>  range > 1  and  step % range != 0  and  the step lies inside the window

Steps count from the first step of the generation, not from the start of the window. A residual
branch may hold attentions of several kinds. It is reused where the rule reuses each of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pab_compile.errors import PlanError
from pab_compile.passes.sites.site import Site

from .presets import Window
from .schedule import Moment

COMPUTE = -1
MAX_ORDER = 2

Weights = tuple[float, ...]
"""Weights of the last computed outputs, the oldest first."""

Entry = int | Weights
"""``COMPUTE``, the order of a reuse, or its weights."""


def order_of(entry: Entry) -> int:
    """``COMPUTE``, or one less than the number of outputs that a reuse needs."""
    return len(entry) - 1 if isinstance(entry, tuple) else entry


class Plan(Protocol):
    """Decides every entry. The answers depend on the arguments only."""

    def entry(self, site: Site, moment: Moment) -> Entry:
        """What this site does at this moment."""
        ...

    def may_reuse(self, site: Site) -> bool:
        """Whether any step can reuse this site. If not, it can be fused with the glue."""
        ...

    def range_of(self, site: Site) -> int | None:
        """Steps per computation inside the window; None if the plan has no such number."""
        ...

    def max_order(self, site: Site) -> int:
        """The highest order of reuse that any step can ask for."""
        ...

    def pattern(self, site: Site) -> Hashable | None:
        """Equal for sites with equal entries at every step; None if never reused or unknown."""
        ...

    def check(self, sites: Sequence[Site]) -> None:
        """Raise ``PlanError`` if the plan does not fit these sites."""
        ...


@dataclass(frozen=True)
class RangePlan:
    """The paper's rule, with a range and an order of prediction per kind.

    Attributes:
        ranges: kind -> compute at every n-th step. Other kinds compute at every step.
        window: (low, high). Float bounds are fractions of the steps; low belongs to the window,
            high does not. Integer bounds are timestep values; neither belongs to it.
        predict: kind -> order of the reuse.
        min_steps: generations that are known to have fewer steps compute all of them.
    """

    ranges: Mapping[str, int]
    window: Window
    predict: Mapping[str, int]
    min_steps: int = 0

    def entry(self, site: Site, moment: Moment) -> int:
        """``COMPUTE`` or the order of the reuse for this site at this moment."""
        computes = any(moment.step % range_ == 0 for range_ in self._ranges_of(site))
        return COMPUTE if computes or not self.is_inside(moment) else self.max_order(site)

    def is_inside(self, moment: Moment) -> bool:
        """Whether a step lies in the window of a generation that is long enough."""
        num_steps = moment.schedule.num_steps
        if num_steps is not None and num_steps < self.min_steps:
            return False
        low, high = self.window
        if isinstance(low, float):
            return low <= moment.progress < high
        return moment.timestep is not None and low < moment.timestep < high

    def may_reuse(self, site: Site) -> bool:
        """Whether every kind of the site has a range above 1."""
        return min(self._ranges_of(site)) > 1

    def range_of(self, site: Site) -> int | None:
        """The range of the site's kinds. None if they differ, and the site can be reused."""
        ranges = self._ranges_of(site)
        return None if self.may_reuse(site) and len(ranges) > 1 else min(ranges)

    def max_order(self, site: Site) -> int:
        """The order of the site's kinds, the lowest of several."""
        return min(self.predict.get(kind, 0) for kind in site.kinds)

    def pattern(self, site: Site) -> Hashable | None:
        """Ranges and order of the site's kinds."""
        return (self._ranges_of(site), self.max_order(site)) if self.may_reuse(site) else None

    def _ranges_of(self, site: Site) -> tuple[int, ...]:
        """The ranges of the site's kinds, each once, the smallest first."""
        return tuple(sorted({self.ranges.get(kind, 1) for kind in site.kinds}))

    def check(self, sites: Sequence[Site]) -> None:
        """Every graph fits."""


@dataclass(frozen=True)
class CallablePlan:
    """A user's function ``(site, step, num_steps, timestep) -> order or weights, or None``."""

    function: Callable[[Site, int, int | None, float | None], int | Sequence[float] | None]

    def entry(self, site: Site, moment: Moment) -> Entry:
        """Ask the function; ``None`` means compute."""
        answer = self.function(site, moment.step, moment.schedule.num_steps, moment.timestep)
        return COMPUTE if answer is None else checked_entry(answer, f"plan function, {site.name}")

    def may_reuse(self, site: Site) -> bool:
        """Any site may be reused, since the function is asked only at run time."""
        return True

    def range_of(self, site: Site) -> None:
        """A function has no range."""
        return None

    def max_order(self, site: Site) -> int:
        """The highest possible order, since the function is asked only at run time."""
        return MAX_ORDER

    def pattern(self, site: Site) -> None:
        """Unknown, since the function is asked only at run time."""
        return None

    def check(self, sites: Sequence[Site]) -> None:
        """Every graph fits."""


def checked_entry(entry: Any, where: str) -> Entry:
    """An order of reuse, or weights, that a user gave."""
    if isinstance(entry, (list, tuple)) and 1 <= len(entry) <= MAX_ORDER + 1:
        weights = tuple(entry)
        if all(type(weight) in (int, float) and math.isfinite(weight) for weight in weights):
            return tuple(map(float, weights))
    elif type(entry) is int and 0 <= entry <= MAX_ORDER:
        return entry
    raise PlanError(
        f"{where}: an entry is compute, an order of reuse from 0 to {MAX_ORDER}, or 1 to "
        f"{MAX_ORDER + 1} finite weights of the last computed outputs; found {entry!r}."
    )
