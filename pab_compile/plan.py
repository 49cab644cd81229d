"""Plans: who computes and who reuses, at which step.

An *entry* is ``COMPUTE`` or the order of the reuse: 0 repeats the last computed output (the paper's
broadcast), 1 goes on along the line through the last two, 2 along the parabola through the last
three. The rule of the paper (reference rule)::

    reuse  <=>  range > 1  and  step % range != 0  and  the step lies inside the window

The phase counts from the first step of the generation, not from the start of the window.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pab_compile.passes.errors import PabError
from pab_compile.passes.sites import Site

from .presets import Window
from .schedule import Moment

COMPUTE = -1
MAX_ORDER = 2
PLAN_FORMAT = "pab_compile.plan/1"


class PlanError(PabError, ValueError):
    """A plan that cannot be used, with what was found in it."""


class Plan(Protocol):
    """Decides one entry; must depend on its arguments only."""

    def entry(self, site: Site, moment: Moment) -> int:
        """``COMPUTE`` or the order of the reuse for this site at this moment."""
        ...

    def may_reuse(self, site: Site) -> bool:
        """Whether any step can reuse this site; False lets the compiler fuse it into the glue."""
        ...

    def range_of(self, site: Site) -> int | None:
        """Steps per computation inside the window, or None when the plan has no such number."""
        ...

    def max_order(self, site: Site) -> int:
        """The highest order of reuse that any step can ask for."""
        ...

    def pattern(self, site: Site) -> Hashable | None:
        """Equal for sites with equal entries at every step; None: never reused, or not known."""
        ...

    def check(self, sites: Sequence[Site]) -> None:
        """Raise ``PlanError`` when the plan does not fit these sites."""
        ...


@dataclass(frozen=True)
class RangePlan:
    """The paper's rule, with a range and an order of prediction per kind.

    Attributes:
        ranges: kind -> compute every so many steps; kinds that are absent compute always.
        window: (low, high); floats are fractions of the steps, half open; integers are timestep
            values, both bounds exclusive.
        predict: kind -> order of the reuse.
    """

    ranges: Mapping[str, int]
    window: Window
    predict: Mapping[str, int]

    def entry(self, site: Site, moment: Moment) -> int:
        """``COMPUTE`` or the order of the reuse for this site at this moment."""
        if moment.step % self.ranges.get(site.kind, 1) == 0 or not self._inside_window(moment):
            return COMPUTE
        return self.predict.get(site.kind, 0)

    def _inside_window(self, moment: Moment) -> bool:
        low, high = self.window
        if isinstance(low, float):
            return low <= moment.progress < high
        return moment.timestep is not None and low < moment.timestep < high

    def may_reuse(self, site: Site) -> bool:
        """Whether the kind has a range above 1."""
        return self.ranges.get(site.kind, 1) > 1

    def range_of(self, site: Site) -> int:
        """The range of the site's kind."""
        return self.ranges.get(site.kind, 1)

    def max_order(self, site: Site) -> int:
        """The order of the site's kind."""
        return self.predict.get(site.kind, 0)

    def pattern(self, site: Site) -> Hashable | None:
        """Range and order of the site's kind."""
        return (self.range_of(site), self.max_order(site)) if self.may_reuse(site) else None

    def check(self, sites: Sequence[Site]) -> None:
        """Every graph fits."""


@dataclass(frozen=True)
class CallablePlan:
    """A user's function ``(site, step, num_steps, timestep) -> order of the reuse, or None``."""

    function: Callable[[Site, int, int | None, float | None], int | None]

    def entry(self, site: Site, moment: Moment) -> int:
        """Ask the function; ``None`` means compute."""
        answer = self.function(site, moment.step, moment.schedule.num_steps, moment.timestep)
        return COMPUTE if answer is None else _checked_entry(answer, f"plan function, {site.name}")

    def may_reuse(self, site: Site) -> bool:
        """Any site may be reused: the function is only asked at run time."""
        return True

    def range_of(self, site: Site) -> None:
        """A function has no range."""
        return None

    def max_order(self, site: Site) -> int:
        """The highest order there is: the function is only asked at run time."""
        return MAX_ORDER

    def pattern(self, site: Site) -> None:
        """Not known: the function is only asked at run time."""
        return None

    def check(self, sites: Sequence[Site]) -> None:
        """Every graph fits."""


@dataclass(frozen=True)
class TablePlan:
    """A table read from a plan file: one row per site, one entry per step.

    Attributes:
        num_steps: number of steps the table was made for; at any other number all compute.
        rows: site name -> entries, one per step.
        origin: where it came from, for messages.
    """

    num_steps: int
    rows: Mapping[str, tuple[int, ...]]
    origin: str

    def entry(self, site: Site, moment: Moment) -> int:
        """The entry of the table."""
        if moment.schedule.num_steps is None:
            return COMPUTE
        if moment.schedule.num_steps != self.num_steps:
            raise PlanError(
                f"{self.origin} is made for {self.num_steps} steps, but this generation has "
                f"{moment.schedule.num_steps}. Use a plan for that number of steps, or ranges."
            )
        return self.rows[site.name][moment.step] if site.name in self.rows else COMPUTE

    def may_reuse(self, site: Site) -> bool:
        """Whether the site's row holds a reuse."""
        return any(entry != COMPUTE for entry in self.rows.get(site.name, ()))

    def range_of(self, site: Site) -> None:
        """A table has no range."""
        return None

    def max_order(self, site: Site) -> int:
        """The highest order in the site's row."""
        return max(self.rows.get(site.name, (0,)), default=0)

    def pattern(self, site: Site) -> Hashable | None:
        """The site's row."""
        return self.rows[site.name] if self.may_reuse(site) else None

    def check(self, sites: Sequence[Site]) -> None:
        """Every row must name a site of the graph that can be broadcast."""
        known = {site.name for site in sites if site.can_broadcast}
        strange = [name for name in self.rows if name not in known]
        if strange:
            raise PlanError(
                f"{self.origin} names {len(strange)} site(s) that this model does not have or that "
                f"cannot be broadcast, first {strange[0]!r}. The model's sites are: "
                f"{', '.join(sorted(known)) or 'none'}. Was the plan made for another model?"
            )


def load_plan(path: str | Path) -> TablePlan:
    """Read a plan file: ``{"format": ..., "num_steps": n, "sites": {name: [entry, ...]}}``.

    An entry is ``"C"`` (compute) or the order of the reuse.

    Raises:
        PlanError: unreadable, malformed, or with rows that do not have one entry per step.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlanError(f"The plan file {str(path)!r} cannot be read as JSON: {error}") from error
    return plan_from_json(content, f"The plan file {str(path)!r}")


def plan_from_json(content: Any, origin: str) -> TablePlan:
    """Validate the content of a plan file; see ``load_plan``."""
    if not isinstance(content, dict) or content.get("format") != PLAN_FORMAT:
        raise PlanError(f'{origin} lacks "format": "{PLAN_FORMAT}", so it is not a plan.')
    num_steps, sites = content.get("num_steps"), content.get("sites")
    if not isinstance(num_steps, int) or isinstance(num_steps, bool) or num_steps < 1:
        raise PlanError(f'{origin}: "num_steps" must be a positive integer, got {num_steps!r}.')
    if not isinstance(sites, dict):
        raise PlanError(f'{origin}: "sites" must map names to entries, got {type(sites).__name__}.')
    rows = {}
    for name, entries in sites.items():
        if not isinstance(entries, list) or len(entries) != num_steps:
            found = f"{len(entries)} entries" if isinstance(entries, list) else repr(entries)
            raise PlanError(f"{origin}: site {name!r} needs {num_steps} entries, found {found}.")
        where = f"{origin}, site {name!r}"
        rows[name] = tuple(COMPUTE if e == "C" else _checked_entry(e, where) for e in entries)
    return TablePlan(num_steps, rows, origin)


def plan_to_json(rows: Mapping[str, Sequence[int]], num_steps: int) -> dict[str, Any]:
    """The content of a plan file for a table of entries."""
    sites = {name: ["C" if e == COMPUTE else e for e in entries] for name, entries in rows.items()}
    return {"format": PLAN_FORMAT, "num_steps": num_steps, "sites": sites}


def _checked_entry(entry: Any, where: str) -> int:
    if isinstance(entry, bool) or not isinstance(entry, int) or not 0 <= entry <= MAX_ORDER:
        raise PlanError(
            f"{where}: an entry is compute, or an order of reuse from 0 to {MAX_ORDER}; "
            f"found {entry!r}."
        )
    return entry
