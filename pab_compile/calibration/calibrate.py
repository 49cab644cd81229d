"""``calibrate``: the best row for all sites of a model, from an observation of it.

The error of a row is how far it leads the latents away (``drift``); ``search`` finds the best one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pab_compile.errors import CalibrationError
from pab_compile.plans.plan import COMPUTE, MAX_ORDER
from pab_compile.plans.plan_file import plan_to_json

from .cost import Cost, flops_cost
from .drift import observed_drift
from .observation import Observation
from .search import Found, best_rows

_FEWER = 2
"""A search for at most so many computed steps starts from so many fewer."""


@dataclass(frozen=True)
class Calibration:
    """A plan chosen by measurement.

    Attributes:
        row: ``COMPUTE`` or the order of the reuse, one entry per step, for every site.
        sites: names of the sites.
        speedup: cost without reuse / cost of the plan.
        error: predicted: how far the latents are from where they would be without reuse (root mean
            square over the steps), relative to the distance from the first to the last.
        cache_bytes: most bytes kept in one lane.
        fingerprint: of the model.
        cut: the option ``cut`` that it holds for.
        coalesce: the option ``coalesce``, likewise.
        predict_in: the option ``predict_in``, likewise.
        cost: what steps were taken to cost.
    """

    row: tuple[int, ...]
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
        return len(self.row)

    def to_json(self) -> dict[str, Any]:
        """The content of a plan file; see ``load_plan``."""
        return {
            **plan_to_json(dict.fromkeys(self.sites, self.row), self.num_steps),
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
        lines = json.dumps(self.to_json(), indent=1)
        Path(path).write_text(_entries_in_one_line(lines) + "\n", encoding="utf-8")


def calibrate(
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
        observation: what ``observe`` returned; for sums (``coalesce``) of a model compiled so.
        speedup: the generation costs at least this many times less than without reuse.
        max_error: at most this error (``Calibration.error``). Give this or ``speedup``.
        max_cache_bytes: most bytes to keep in one lane.
        max_order: highest order of the reuse.
        max_distance: most steps between a reused step and the computed one before it.
        predict_in: what predictions are polynomials of: the option of that name.
        cost: what the steps cost: ``measure_cost``, ``wire_cost`` or your own. None counts FLOPs.

    Raises:
        CalibrationError: no plan does it; the message says what the best ones do.
    """
    if (speedup is None) == (max_error is None):
        raise CalibrationError("Give either speedup or max_error, so that one of them is sought.")
    num_steps = observation.num_steps
    cost = flops_cost(observation) if cost is None else cost
    limit = math.inf if max_cache_bytes is None else max_cache_bytes
    # COMPUTE is -1 and keeps nothing.
    orders = [o for o in range(max_order + 1) if (o + 1) * observation.kept_bytes <= limit]
    fewest = math.ceil(num_steps / (max_distance + 1)) if orders else num_steps
    if speedup is not None:
        fast = [n for n in range(fewest, num_steps + 1) if cost.speedup(n, num_steps) >= speedup]
        counts = range(max(fewest, fast[-1] - _FEWER), fast[-1] + 1) if fast else range(0)
    else:
        counts = range(fewest, num_steps + 1)
    measure = observed_drift(observation, _positions(observation, predict_in), max_distance)
    best = Found(math.inf, ())
    for found in best_rows(measure, num_steps, counts, max(orders, default=0)):
        best = min(found, best, key=lambda one: one.error)
        if max_error is not None and math.sqrt(best.error) <= max_error:
            break
    if math.isinf(best.error):
        raise CalibrationError(
            f"No plan reaches speedup={speedup}, max_error={max_error} within {limit} bytes: the "
            f"fastest within them saves to {cost.speedup(fewest, num_steps):.2f}x (reuse can spare "
            f"{cost.spared:.0%} of the {cost.unit} of a step, and at most {max_distance} steps in "
            "a row, all of them observed). Ask for less, or raise max_distance."
        )
    return Calibration(
        best.row,
        tuple(site.name for site in observation.sites),
        cost.speedup(best.row.count(COMPUTE), num_steps),
        math.sqrt(best.error),
        observation.kept_bytes * (max(best.row) + 1),
        observation.fingerprint,
        observation.cut,
        observation.coalesce,
        predict_in,
        cost,
    )


def predicted_error(
    observation: Observation,
    row: Sequence[int],
    predict_in: Literal["step", "timestep"] = "step",
) -> float:
    """``Calibration.error`` of any row: infinite where it reuses what was not observed.

    Args:
        observation: of the model.
        row: what every site does: ``COMPUTE`` or an order, one entry per step.
        predict_in: what predictions are polynomials of.
    """
    entries = torch.tensor([row], dtype=torch.long)
    if entries.shape[1] != observation.num_steps or entries[0, 0] != COMPUTE:
        raise CalibrationError(
            f"A row has one entry for each of the {observation.num_steps} observed steps, the "
            f"first of them {COMPUTE} (compute); found {list(row)}."
        )
    return math.sqrt(observed_drift(observation, _positions(observation, predict_in))(entries)[0])


def _positions(observation: Observation, predict_in: str) -> list[float]:
    if predict_in == "step":
        return [float(step) for step in range(observation.num_steps)]
    known = [t for t in observation.timesteps if t is not None]
    if len(known) < observation.num_steps or len(set(known)) < len(known):
        raise CalibrationError(
            "predict_in='timestep' needs a timestep of its own for every step; observed were "
            f"{observation.timesteps}."
        )
    return known


def _entries_in_one_line(text: str) -> str:
    return re.sub(r"\[[^\[\]]*\]", lambda row: json.dumps(json.loads(row[0])), text)
