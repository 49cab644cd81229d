"""The best plan for a model, from an observation of it: ``tune(observation, ...)``.

All sites of the plan have the same entries. ``drift`` gives the error of a plan: how far it moves
the latents. ``search`` finds the plan of least error.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pab_compile.errors import CalibrationError
from pab_compile.plans.plan import COMPUTE, MAX_ORDER
from pab_compile.plans.plan_file import plan_text, plan_to_json
from pab_compile.report.files import write_text

from .cost import Cost, flops_cost
from .drift import observed_drift
from .observation import Observation
from .search import Found, best_entries

_FEWER = 2
"""A search for a number of computed steps starts with this many fewer."""


@dataclass(frozen=True)
class Calibration:
    """A plan chosen by measurement.

    Attributes:
        entries: one per step, for every site: ``COMPUTE`` or the order of the reuse.
        sites: names of the sites.
        speedup: cost without reuse / cost of the plan.
        error: the predicted distance of the latents to those without reuse. It is the root mean
            square over the steps, relative to the distance from the first to the last latents.
        cache_bytes: most bytes in the cache of one lane.
        fingerprint: of the model.
        cut: the value of the option ``cut`` that the plan needs.
        coalesce: the value of the option ``coalesce``, likewise.
        predict_in: the value of the option ``predict_in``, likewise.
        cost: the cost of the steps that was used.
    """

    entries: tuple[int, ...]
    sites: tuple[str, ...]
    speedup: float
    error: float
    cache_bytes: int
    fingerprint: str
    cut: str
    coalesce: bool
    predict_in: str
    cost: Cost

    @property
    def num_steps(self) -> int:
        """Steps of the observed generations."""
        return len(self.entries)

    def to_json(self) -> dict[str, Any]:
        """The content of a plan file; see ``load_plan``."""
        return {
            **plan_to_json(dict.fromkeys(self.sites, self.entries), self.num_steps),
            "fingerprint": self.fingerprint,
            "cut": self.cut,
            "coalesce": self.coalesce,
            "predict_in": self.predict_in,
            "predicted": {
                "speedup": self.speedup,
                "unit": self.cost.unit,
                "error": self.error,
                "cache_bytes": self.cache_bytes,
            },
        }

    def save(self, path: str | Path) -> None:
        """Write a plan file, for ``options={"plan": path}``."""
        write_text(path, plan_text(self.to_json()))


def calibrate(observation: Observation, **options: Any) -> Calibration:
    """The old name of ``tune(observation, ...)``, with the same options. It will be removed."""
    warnings.warn(
        "pab_compile.calibrate(observation, ...) is called pab_compile.tune(observation, ...) now. "
        "The old name will be removed.",
        DeprecationWarning,
        stacklevel=2,
    )
    return from_observation(observation, **options)


def from_observation(
    observation: Observation,
    *,
    speedup: float | None = None,
    max_error: float | None = None,
    max_cache_bytes: int | None = None,
    max_order: int = MAX_ORDER,
    max_distance: int = 8,
    predict_in: Literal["step", "timestep"] = "step",
    cost: Cost | None = None,
) -> Calibration:
    """Choose the plan of least error at a speed-up, or of most speed-up at an error.

    Args:
        observation: what ``observe`` returned. For a plan of sums, observe with ``coalesce``.
        speedup: smallest ratio of the costs without reuse and with the plan.
        max_error: largest error (``Calibration.error``). Give this or ``speedup``.
        max_cache_bytes: most bytes in the cache of one lane.
        max_order: highest order of the reuse.
        max_distance: most steps between a reused step and the computed step before it.
        predict_in: the option ``predict_in``: predictions are polynomials of this.
        cost: the cost of the steps: from ``measure_cost``, from ``wire_cost`` or your own. None
            counts FLOPs.

    Raises:
        CalibrationError: no plan meets the request. The message says what the best plans do.
    """
    if (speedup is None) == (max_error is None):
        raise CalibrationError("Give either speedup or max_error: the other one is optimised.")
    num_steps = observation.num_steps
    cost = flops_cost(observation) if cost is None else cost
    limit = math.inf if max_cache_bytes is None else max_cache_bytes
    # COMPUTE is -1 and caches nothing.
    orders = [o for o in range(max_order + 1) if (o + 1) * observation.kept_bytes <= limit]
    fewest = math.ceil(num_steps / (max_distance + 1)) if orders else num_steps
    if speedup is not None:
        fast = [n for n in range(fewest, num_steps + 1) if cost.speedup(n, num_steps) >= speedup]
        counts = range(max(fewest, fast[-1] - _FEWER), fast[-1] + 1) if fast else range(0)
    else:
        counts = range(fewest, num_steps + 1)
    measure = observed_drift(observation, _positions(observation, predict_in), max_distance)
    best = Found(math.inf, ())
    for found in best_entries(measure, num_steps, counts, max(orders, default=0)):
        best = min(found, best, key=lambda one: one.error)
        if max_error is not None and math.sqrt(best.error) <= max_error:
            break
    if math.isinf(best.error):
        raise CalibrationError(
            f"No plan reaches speedup={speedup}, max_error={max_error} within {limit} bytes. The "
            f"largest speed-up within them is {cost.speedup(fewest, num_steps):.2f}x: reuse saves "
            f"{cost.spared:.0%} of the {cost.unit} of a step, at most {max_distance} successive "
            "steps reuse, and all of them were observed. Ask for less, or raise max_distance."
        )
    return Calibration(
        best.entries,
        tuple(site.name for site in observation.sites),
        cost.speedup(best.entries.count(COMPUTE), num_steps),
        math.sqrt(best.error),
        observation.kept_bytes * (max(best.entries) + 1),
        observation.fingerprint,
        observation.cut,
        observation.coalesce,
        predict_in,
        cost,
    )


def predicted_error(
    observation: Observation,
    entries: Sequence[int],
    predict_in: Literal["step", "timestep"] = "step",
) -> float:
    """``Calibration.error`` of any entries; infinite if they reuse what was not observed.

    Args:
        observation: of the model.
        entries: one per step, for every site: ``COMPUTE`` or the order of the reuse.
        predict_in: predictions are polynomials of the ``step`` or of the ``timestep``.

    Raises:
        CalibrationError: the number of entries is wrong, or the first one reuses.
    """
    candidate = torch.tensor([entries], dtype=torch.long)
    if candidate.shape[1] != observation.num_steps or candidate[0, 0] != COMPUTE:
        raise CalibrationError(
            f"There must be one entry for each of the {observation.num_steps} observed steps, and "
            f"the first one must be {COMPUTE} (compute); found {list(entries)}."
        )
    return math.sqrt(observed_drift(observation, _positions(observation, predict_in))(candidate)[0])


def _positions(observation: Observation, predict_in: str) -> list[float]:
    if predict_in == "step":
        return [float(step) for step in range(observation.num_steps)]
    known = [t for t in observation.timesteps if t is not None]
    if len(known) < observation.num_steps or len(set(known)) < len(known):
        raise CalibrationError(
            "predict_in='timestep' needs a known and distinct timestep for every step; the "
            f"observation has {observation.timesteps}."
        )
    return known
