"""Plans as tables, and their JSON files. Reading a file never runs code from it."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pab_compile.errors import PlanError
from pab_compile.passes.sites.site import CUTS, Site

from .fingerprint import is_fingerprint_of, model_fingerprint
from .plan import COMPUTE, checked_entry
from .schedule import Moment
from .step_plan import STEP_PLAN_FORMAT, StepPlan, step_plan_from_json

PLAN_FORMAT = "pab_compile.plan/1"
PREDICT_IN = ("step", "timestep")
_MAX_FILE_BYTES = 2**26


@dataclass(frozen=True)
class Calibrated:
    """The model and the options that a calibrated plan needs.

    Attributes:
        fingerprint: of the model (``plans.fingerprint``).
        cut: the option ``cut``.
        coalesce: the option ``coalesce``.
        predict_in: the option ``predict_in``.
    """

    fingerprint: str
    cut: str
    coalesce: bool
    predict_in: str


@dataclass(frozen=True)
class TablePlan:
    """A table read from a plan file: for each site one entry per step.

    Attributes:
        num_steps: number of steps of the table.
        entries: site name -> its entries, one per step.
        origin: where the plan came from, for messages.
        calibrated: the model and the options that a calibrated plan needs. A calibrated plan fits
            any number of steps (``resample``).
    """

    num_steps: int
    entries: Mapping[str, tuple[int, ...]]
    origin: str
    calibrated: Calibrated | None = None

    def entry(self, site: Site, moment: Moment) -> int:
        """The entry of the table."""
        if moment.schedule.num_steps is None:
            return COMPUTE
        num_steps, entries = moment.schedule.num_steps, self.entries.get(site.name)
        if num_steps != self.num_steps and self.calibrated is None:
            raise PlanError(
                f"{self.origin} is made for {self.num_steps} steps, but this generation has "
                f"{num_steps}. Use a plan for that number of steps, or ranges."
            )
        return COMPUTE if entries is None else resample(entries, num_steps)[moment.step]

    def may_reuse(self, site: Site) -> bool:
        """Whether the site has an entry that reuses."""
        return any(entry != COMPUTE for entry in self.entries.get(site.name, ()))

    def range_of(self, site: Site) -> None:
        """A table has no range."""
        return None

    def max_order(self, site: Site) -> int:
        """The highest order among the site's entries."""
        return max(self.entries.get(site.name, (0,)), default=0)

    def pattern(self, site: Site) -> Hashable | None:
        """The site's entries."""
        return self.entries[site.name] if self.may_reuse(site) else None

    def check(self, sites: Sequence[Site]) -> None:
        """Check that every name is a site that can be broadcast, and that the model is the same."""
        known = [site.name for site in sites if site.can_broadcast]
        strange = [name for name in self.entries if name not in known]
        if strange:
            raise PlanError(
                f"{self.origin} names {len(strange)} site(s) that this model does not have or that "
                f"cannot be broadcast, first {strange[0]!r}. The model's sites are: "
                f"{', '.join(sorted(known)) or 'none'}. Was the plan made for another model?"
            )
        self._check_model([site for site in sites if site.can_broadcast])

    def _check_model(self, sites: Sequence[Site]) -> None:
        if self.calibrated is None:
            return
        made_for, cut = self.calibrated.fingerprint, self.calibrated.cut
        if not is_fingerprint_of(made_for, sites, cut):
            found = model_fingerprint(sites, cut)
            raise PlanError(
                f"{self.origin} was calibrated on a model with fingerprint "
                f"{made_for}, but this one's is {found}: it has other sites "
                f"({len(sites)} that can be broadcast; the plan names {len(self.entries)}). "
                "Observe and calibrate this model."
            )


@functools.lru_cache(maxsize=256)
def resample(entries: tuple[int, ...], num_steps: int) -> tuple[int, ...]:
    """The entries of a site at another number of steps.

    Computed steps keep their place, as a fraction of the generation. Every other step lies between
    two of the given steps. It computes if both compute. Else it takes the lower order of those that
    reuse.

    Args:
        entries: one per step.
        num_steps: the new number of steps.
    """
    if num_steps == len(entries):
        return entries
    scale = (num_steps - 1) / max(len(entries) - 1, 1)
    computed = {round(step * scale) for step, entry in enumerate(entries) if entry == COMPUTE}
    resampled = []
    for step in range(num_steps):
        place = step / scale if scale else 0.0
        near = (entries[math.floor(place)], entries[min(math.ceil(place), len(entries) - 1)])
        orders = [entry for entry in near if entry != COMPUTE]
        resampled.append(COMPUTE if step in computed or not orders else min(orders))
    return tuple(resampled)


def load_plan(path: str | Path) -> TablePlan | StepPlan:
    """Read a plan file: ``{"format": ..., "num_steps": n, "sites": {name: [entry, ...]}}``.

    A file of format 2 has ``entries`` for all sites instead (``step_plan``).

    An entry is ``"C"`` (compute) or the order of the reuse. A file of ``Calibration.save`` also has
    ``fingerprint``, ``cut``, ``coalesce`` and ``predict_in``.

    Raises:
        PlanError: the file is unreadable or malformed, or a site lacks an entry for a step.
    """
    try:
        size = Path(path).stat().st_size
        if size > _MAX_FILE_BYTES:
            raise ValueError(f"it has {size} bytes, and plans have at most {_MAX_FILE_BYTES}")
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PlanError(f"The plan file {str(path)!r} does not exist.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise PlanError(f"The plan file {str(path)!r} cannot be read as JSON: {error}") from error
    return plan_from_json(content, f"The plan file {str(path)!r}")


def plan_from_json(content: Any, origin: str) -> TablePlan | StepPlan:
    """Validate the content of a plan file; see ``load_plan``."""
    if isinstance(content, dict) and content.get("format") == STEP_PLAN_FORMAT:
        return step_plan_from_json(content, origin)
    if not isinstance(content, dict) or content.get("format") != PLAN_FORMAT:
        raise PlanError(
            f'{origin} lacks "format": "{PLAN_FORMAT}" (or "{STEP_PLAN_FORMAT}"), so it is no plan.'
        )
    num_steps, sites = content.get("num_steps"), content.get("sites")
    if not isinstance(num_steps, int) or isinstance(num_steps, bool) or num_steps < 1:
        raise PlanError(f'{origin}: "num_steps" must be a positive integer, got {num_steps!r}.')
    if not isinstance(sites, dict):
        raise PlanError(f'{origin}: "sites" must map names to entries, got {type(sites).__name__}.')
    table = {}
    for name, listed in sites.items():
        if not isinstance(listed, list) or len(listed) != num_steps:
            found = f"{len(listed)} entries" if isinstance(listed, list) else repr(listed)
            raise PlanError(f"{origin}: site {name!r} needs {num_steps} entries, found {found}.")
        where = f"{origin}, site {name!r}"
        table[name] = tuple(COMPUTE if e == "C" else _order(e, where) for e in listed)
    return TablePlan(num_steps, table, origin, _calibrated(content, origin))


def _order(entry: Any, where: str) -> int:
    checked = checked_entry(entry, where)
    if isinstance(checked, tuple):
        raise PlanError(f"{where}: weights need format {STEP_PLAN_FORMAT!r}; found {entry!r}.")
    return checked


def plan_to_json(table: Mapping[str, Sequence[int]], num_steps: int) -> dict[str, Any]:
    """The content of a plan file for a table of entries."""
    sites = {name: ["C" if e == COMPUTE else e for e in entries] for name, entries in table.items()}
    return {"format": PLAN_FORMAT, "num_steps": num_steps, "sites": sites}


def plan_text(content: Mapping[str, Any]) -> str:
    """The text of a plan file, with every list in one line."""
    lines = json.dumps(content, indent=1)
    return re.sub(r"\[[^\[\]]*\]", lambda row: json.dumps(json.loads(row[0])), lines) + "\n"


def _calibrated(content: dict[str, Any], origin: str) -> Calibrated | None:
    if "fingerprint" not in content:
        return None
    fingerprint, cut, coalesce, predict_in = (
        content.get(name) for name in ("fingerprint", "cut", "coalesce", "predict_in")
    )
    if (
        not isinstance(fingerprint, str)
        or cut not in CUTS
        or not isinstance(coalesce, bool)
        or predict_in not in PREDICT_IN
    ):
        raise PlanError(
            f"{origin}: a calibrated plan says which model it is for; found "
            f"fingerprint={fingerprint!r}, cut={cut!r}, coalesce={coalesce!r}, "
            f"predict_in={predict_in!r}."
        )
    return Calibrated(fingerprint, cut, coalesce, predict_in)
