"""``calibrate``: the best plan for a model, from an observation of it.

The error of reusing at a step is the mean over sites and runs of ``|x - x'|^2 / |x|^2``, where
``x'`` is predicted from the outputs computed last; ``cut="gated"`` divides by the mean over the
sites instead, since what a site adds to the residual stream can be compared with what others add.
It is read off the observation exactly, for any computed steps, as if the inputs of the sites were
those of the run without reuse. Errors of steps add up. The search itself is ``frontier``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from pab_compile.passes.errors import PabError

from .frontier import Choice, Group, best_choices
from .observation import MAX_LAG, Observation, lagrange
from .plan import COMPUTE, MAX_ORDER
from .plan_file import plan_to_json

_Gram = list[list[list[float]]]


class CalibrationError(PabError, ValueError):
    """No plan does what is asked, with what the best one can do."""


@dataclass(frozen=True)
class Calibration:
    """A plan chosen by measurement.

    Attributes:
        rows: site name -> ``COMPUTE`` or the order of the reuse, one entry per step.
        num_steps: of the observed generations.
        speedup: FLOPs without reuse / FLOPs of the plan.
        error: root of the mean over steps of the predicted squared relative error.
        cache_bytes: most bytes kept in one lane.
        fingerprint: of the model.
        cut: the option ``cut`` that it holds for.
        predict_in: the option ``predict_in`` that it holds for.
    """

    rows: Mapping[str, Sequence[int]]
    num_steps: int
    speedup: float
    error: float
    cache_bytes: int
    fingerprint: str
    cut: str
    predict_in: str

    def to_json(self) -> dict[str, Any]:
        """The content of a plan file; see ``load_plan``."""
        return {
            **plan_to_json(self.rows, self.num_steps),
            "fingerprint": self.fingerprint,
            "cut": self.cut,
            "predict_in": self.predict_in,
            "predicted": {
                "speedup": self.speedup,
                "error": self.error,
                "cache_bytes": self.cache_bytes,
            },
        }

    def save(self, path: str | Path) -> None:
        """Write a plan file, for ``options={"plan": path}``."""
        Path(path).write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")


def calibrate(
    observation: Observation,
    *,
    speedup: float | None = None,
    max_error: float | None = None,
    max_cache_bytes: int | None = None,
    total_flops: int | None = None,
    align: Literal["model", "kind"] = "model",
    max_order: int = MAX_ORDER,
    max_distance: int = 8,
    predict_in: Literal["step", "timestep"] = "step",
) -> Calibration:
    """Choose the plan of least error at a speed-up, or of most speed-up at an error.

    Args:
        observation: what ``observe`` returned.
        speedup: at least this many times fewer FLOPs than without reuse.
        max_error: at most this error (``Calibration.error``). Give this or ``speedup``.
        max_cache_bytes: most bytes to keep in one lane.
        total_flops: of one call of the model (``explain(...).total_flops``); without it the
            speed-up is that of the sites alone, which is more than the model's.
        align: ``"model"``: all sites compute at the same steps; ``"kind"``: those of a kind.
        max_order: highest order of the reuse.
        max_distance: most steps between a reused step and the computed one before it.
        predict_in: what predictions are polynomials of: the option of that name.

    Raises:
        CalibrationError: no plan does it; the message says what the best ones do.
    """
    if (speedup is None) == (max_error is None):
        raise CalibrationError("Give either speedup or max_error, so that one of them is sought.")
    groups = _groups(observation, align)
    flops = [site.flops for site in observation.sites]
    per_step = max(total_flops or 0, sum(flops))
    fixed = observation.num_steps * (per_step - sum(flops))
    positions = _positions(observation, predict_in)
    choices = best_choices(
        Group(
            name,
            observation.num_steps,
            partial(_error, _gram(observation, sites), positions),
            float(sum(flops[i] for i in sites)),
            sum(observation.sites[i].cache_bytes for i in sites),
            max_order,
            max_distance,
        )
        for name, sites in groups.items()
    )

    def speed(choice: Choice) -> float:
        return observation.num_steps * per_step / max(fixed + choice.cost, 1)

    def error(choice: Choice) -> float:
        return math.sqrt(choice.error / observation.num_steps)

    limit = math.inf if max_cache_bytes is None else max_cache_bytes
    fitting = [choice for choice in choices if choice.cache_bytes <= limit]
    if speedup is not None:
        good = [choice for choice in fitting if speed(choice) >= speedup]
        best = min(good, key=lambda c: (c.error, c.cost), default=None)
    else:
        good = [choice for choice in fitting if error(choice) <= (max_error or 0)]
        best = min(good, key=lambda c: (c.cost, c.error), default=None)
    if best is None:
        raise CalibrationError(
            f"No plan reaches speedup={speedup}, max_error={max_error} within {limit} bytes: the "
            f"fastest within them saves to {max(map(speed, fitting), default=1.0):.2f}x (reuse "
            f"can spare {sum(flops) / max(per_step, 1):.0%} of the FLOPs of a step, and at most "
            f"{max_distance} steps in a row). Ask for less, or raise max_distance."
        )
    rows = {
        observation.sites[i].name: best.rows[name] for name, sites in groups.items() for i in sites
    }
    return Calibration(
        rows,
        observation.num_steps,
        speed(best),
        error(best),
        best.cache_bytes,
        observation.fingerprint,
        observation.cut,
        predict_in,
    )


def predicted_error(
    observation: Observation,
    rows: Mapping[str, Sequence[int]],
    predict_in: Literal["step", "timestep"] = "step",
) -> float:
    """``Calibration.error`` of any plan: infinite where it reuses what was not observed.

    Args:
        observation: of the model.
        rows: site name -> entries; sites that are left out compute.
        predict_in: what predictions are polynomials of.
    """
    positions, total = _positions(observation, predict_in), 0.0
    for index, site in enumerate(observation.sites):
        gram = _gram(observation, [index])
        computed: list[int] = []
        for step, entry in enumerate(rows.get(site.name, ())):
            if entry == COMPUTE or not computed:
                computed.insert(0, step)
            else:
                total += _error(gram, positions, step, tuple(computed[: entry + 1]))
    return math.sqrt(total / observation.num_steps)


def _groups(observation: Observation, align: str) -> dict[str, list[int]]:
    if align not in ("model", "kind"):
        raise CalibrationError(f'align={align!r}: "model" or "kind".')
    groups: dict[str, list[int]] = {}
    for index, site in enumerate(observation.sites):
        groups.setdefault(site.kind if align == "kind" else "model", []).append(index)
    return groups


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


def _gram(observation: Observation, sites: Sequence[int]) -> _Gram:
    """``[step][a][b]``: products of the outputs ``a`` and ``b`` steps before, over the norm.

    Summed over the group's sites, over the number of all sites; the mean over the runs.
    """
    norms = observation.mean_square()
    if observation.cut == "gated":
        norms = norms.mean(1, keepdim=True).expand_as(norms)
    weights = (1 / norms[:, list(sites)] / len(observation.sites)).nan_to_num(posinf=0.0)
    products = observation.products[:, list(sites)]
    num_steps = observation.num_steps
    gram = torch.full((num_steps, MAX_LAG + 1, MAX_LAG + 1), math.nan, dtype=torch.float64)
    for near in range(min(MAX_LAG + 1, num_steps)):
        shifted = products[:, :, : num_steps - near]  # products of step - near, at every step
        weighted = (shifted * weights[:, :, near:, None]).sum(1).mean(0)
        for far in range(near, MAX_LAG + 1):
            gram[near:, near, far] = gram[near:, far, near] = weighted[:, far - near]
    return gram.tolist()


def _error(gram: _Gram, positions: Sequence[float], step: int, sources: tuple[int, ...]) -> float:
    lags = (0, *(step - source for source in sources))
    if lags[-1] > MAX_LAG:
        return math.inf
    weights = (-1.0, *lagrange([positions[source] for source in sources], positions[step]))
    products = gram[step]
    total = sum(
        w * v * products[a][b]
        for a, w in zip(lags, weights, strict=True)
        for b, v in zip(lags, weights, strict=True)
    )
    return math.inf if math.isnan(total) else max(total, 0.0)
