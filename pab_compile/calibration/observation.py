"""Observations: how much outputs change from step to step, and how well they can be predicted.

For every site, the mean products of its outputs at two steps are stored, up to ``MAX_LAG`` steps
apart::

    products[run, site, step, lag] = mean over the sampled elements of x[step] * x[step - lag]

The error of any prediction that is a weighted sum of outputs follows from these numbers exactly,
since ``|x - sum w_i x_i|^2`` is a quadratic form in them. ``MAX_LAG`` is 24, which is enough for a
parabola through the outputs 8, 16 and 24 steps before. For the outputs of the model, the products
of every two steps are stored. ``calibrate`` uses these.

An observation file is JSON. Reading it never runs code from it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from pab_compile.errors import ObservationError
from pab_compile.passes.sites.site import CUTS, KINDS
from pab_compile.plans.fingerprint import model_fingerprint
from pab_compile.report.files import write_text

from .observation_plot import plot_changes

MAX_DISTANCE = 8
MAX_LAG = 3 * MAX_DISTANCE
OBSERVATION_FORMAT = "pab_compile.observation/2"
_MAX_FILE_BYTES = 2**28
_SETTINGS: dict[str, type] = {
    "cut": str,
    "coalesce": bool,
    "kept_bytes": int,
    "total_flops": int,
    "num_samples": int,
}


@dataclass(frozen=True)
class ObservedSite:
    """A site whose outputs were observed.

    Attributes:
        name: unique in the model.
        kind: one of ``passes.sites.site.KINDS``.
        module: path of the module, or ``""``.
        cache_bytes: bytes of one output.
        flops: floating point operations that one reuse saves.
    """

    name: str
    kind: str
    module: str
    cache_bytes: int
    flops: int


@dataclass(frozen=True)
class ObservedRun:
    """One lane of one generation.

    Attributes:
        generation: number of the generation, from 0.
        lane: name of the lane, or its number among those of the generation.
    """

    generation: int
    lane: str


@dataclass(frozen=True, eq=False)
class Observation:
    """Outputs of all sites of a model, compared between the steps of whole generations.

    Attributes:
        sites: in model order.
        runs: lanes of generations.
        timesteps: timestep of every step; None if it is unknown.
        cut: the option ``cut``, which says where the outputs were taken.
        coalesce: the option ``coalesce``.
        kept_bytes: bytes in the cache of a lane if all sites are reused together with order 0.
        total_flops: floating point operations of one call of the model.
        num_samples: most elements that were compared per site (``passes.rewrite.probes``).
        products: float64 of shape ``[runs, sites, steps, 1 + MAX_LAG]``; NaN if the earlier step
            does not exist or did not run.
        outputs: mean products of the model's outputs at two steps. Float64 of shape
            ``[runs, steps, steps]``; NaN if one of the steps did not run.
    """

    sites: tuple[ObservedSite, ...]
    runs: tuple[ObservedRun, ...]
    timesteps: tuple[float | None, ...]
    cut: str
    coalesce: bool
    kept_bytes: int
    total_flops: int
    num_samples: int
    products: torch.Tensor
    outputs: torch.Tensor

    @property
    def fingerprint(self) -> str:
        """Hash of the names, kinds and modules of the sites, and of the cut."""
        return model_fingerprint(self.sites, self.cut)

    @property
    def num_steps(self) -> int:
        """Steps of a generation."""
        return len(self.timesteps)

    def mean_square(self) -> torch.Tensor:
        """Mean square of the outputs: ``[runs, sites, steps]``."""
        return self.products[..., 0]

    def difference(self) -> torch.Tensor:
        """Mean squared difference to the step before (paper, fig. 2): ``[runs, sites, steps]``."""
        return self._squared_errors((1,), (1.0,))

    def curves(self) -> dict[str, list[float]]:
        """Kind -> ``difference``, averaged over its sites, runs and lanes, per step.

        ``stats(...).to_html(curves=seen.curves())`` draws them. The first step is NaN.
        """
        difference, kinds = self.difference().nanmean(0), [site.kind for site in self.sites]
        return {
            kind: difference[[n for n, other in enumerate(kinds) if other == kind]].mean(0).tolist()
            for kind in dict.fromkeys(kinds)
        }

    def relative_norm(self) -> torch.Tensor:
        """Norm relative to the norm of the step before: ``[runs, sites, steps]``."""
        return (self.mean_square() / self._shifted(self.mean_square(), 1)).sqrt()

    def cosine(self) -> torch.Tensor:
        """Cosine of the angle to the output of the step before: ``[runs, sites, steps]``."""
        norms = self.mean_square() * self._shifted(self.mean_square(), 1)
        return self.products[..., 1] / norms.sqrt()

    def relative_error(self, order: int, distance: int, spacing: int | None = None) -> torch.Tensor:
        """Error of a prediction relative to the norm of the output: ``[runs, sites, steps]``.

        ``order + 1`` outputs predict the output at ``step``. They are those at ``step - distance``,
        ``step - distance - spacing`` and so on.

        Args:
            order: 0 repeats; 1 follows a line and 2 a parabola in the step.
            distance: steps between the newest output and the predicted one.
            spacing: steps between the outputs. None: the distance.

        Raises:
            ObservationError: the outputs are further apart than the observation allows.
        """
        gap = distance if spacing is None else spacing
        lags = tuple(distance + gap * i for i in range(order + 1))
        if distance < 1 or gap < 1 or lags[-1] > MAX_LAG:
            raise ObservationError(
                f"distance={distance}, spacing={gap}: both must be at least 1, and the oldest "
                f"output at most {MAX_LAG} steps back; here {lags[-1]}."
            )
        weights = lagrange([-float(lag) for lag in lags], 0.0)
        return (self._squared_errors(lags, weights) / self.mean_square()).sqrt()

    def squared_error(
        self, step: int, sources: Sequence[int], positions: Sequence[float] | None = None
    ) -> torch.Tensor:
        """Mean squared error of predicting a step from any others: ``[runs, sites]``.

        Args:
            step: the step to predict.
            sources: steps whose outputs the polynomial goes through.
            positions: one number per step; the polynomial is one of these numbers. None: the step.

        Raises:
            ObservationError: a source is not an earlier step, or is too far from the step.
        """
        if not sources or not all(0 < step - source <= MAX_LAG for source in sources):
            raise ObservationError(
                f"sources={list(sources)} of step {step}: they must be 1 to {MAX_LAG} steps before "
                "it."
            )
        at = [float(i) for i in range(self.num_steps)] if positions is None else positions
        weights = lagrange([at[source] for source in sources], at[step])
        lags = tuple(step - source for source in sources)
        return self._squared_errors(lags, weights, step)

    def _squared_errors(
        self, lags: Sequence[int], weights: Sequence[float], step: int | None = None
    ) -> torch.Tensor:
        """``|x[step] - sum w_i x[step - lag_i]|^2`` at all steps or at one, from the products."""
        terms = [(0, -1.0), *zip(lags, weights, strict=True)]
        total = torch.zeros_like(self.products[..., 0])
        for one, w in terms:
            for other, v in terms:
                near, far = min(one, other), max(one, other)
                total = total + w * v * self._shifted(self.products[..., far - near], near)
        total = total.clamp(min=0)
        return total if step is None else total[..., step]

    def _shifted(self, values: torch.Tensor, lag: int) -> torch.Tensor:
        """The values of ``lag`` steps before; NaN if there are none."""
        shifted = torch.full_like(values, math.nan)
        if lag < values.shape[-1]:
            shifted[..., lag:] = values[..., : values.shape[-1] - lag]
        return shifted

    def save(self, path: str | Path) -> None:
        """Write the observation as JSON; ``load_observation`` reads it."""
        write_text(path, json.dumps(observation_to_json(self)))

    def plot(self) -> Any:
        """Draw the changes (``observation_plot``), as a ``matplotlib.figure.Figure``."""
        difference = self.difference().nanmean(0)
        change = self.relative_error(order=0, distance=1).nanmean(0)
        names, kinds = zip(*((site.name, site.kind) for site in self.sites), strict=True)
        return plot_changes(difference, change, names, kinds)


def lagrange(positions: Sequence[float], at: float) -> tuple[float, ...]:
    """Weights of the values at some positions in the value of their polynomial at another."""
    return tuple(
        math.prod((at - b) / (a - b) for j, b in enumerate(positions) if j != i)
        for i, a in enumerate(positions)
    )


def observation_to_json(observation: Observation) -> dict[str, Any]:
    """The content of an observation file."""
    content = {
        "format": OBSERVATION_FORMAT,
        "fingerprint": observation.fingerprint,
        **{name: getattr(observation, name) for name in _SETTINGS},
        "timesteps": list(observation.timesteps),
        "sites": [asdict(site) for site in observation.sites],
        "runs": [asdict(run) for run in observation.runs],
        "products": _listed(observation.products),
        "outputs": _listed(observation.outputs),
    }
    return {**content, "digest": _digest(content)}


def load_observation(path: str | Path) -> Observation:
    """Read an observation file.

    Raises:
        ObservationError: the file cannot be read, is too large, or ``save`` did not write it.
    """
    origin = f"The observation file {str(path)!r}"
    try:
        size = Path(path).stat().st_size
        if size > _MAX_FILE_BYTES:
            raise ObservationError(
                f"{origin} has {size} bytes; observations have at most {_MAX_FILE_BYTES}."
            )
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ObservationError):
            raise
        raise ObservationError(f"{origin} cannot be read as JSON: {error}") from error
    return observation_from_json(content, origin)


def observation_from_json(content: Any, origin: str) -> Observation:
    """Validate the content of an observation file; see ``load_observation``."""
    if not isinstance(content, dict) or content.get("format") != OBSERVATION_FORMAT:
        raise ObservationError(
            f'{origin} lacks "format": "{OBSERVATION_FORMAT}", so it is not an observation.'
        )
    try:
        found = _digest({key: value for key, value in content.items() if key != "digest"})
        if content.get("digest") != found:
            raise ValueError("it was changed after it was written (its digest does not fit)")
        observation = _parse(content)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ObservationError(f"{origin} is malformed: {error!r}.") from error
    if content.get("fingerprint") != observation.fingerprint:
        raise ObservationError(f"{origin} is malformed: its fingerprint is not that of its sites.")
    return observation


def _parse(content: dict[str, Any]) -> Observation:
    sites = tuple(_record(ObservedSite, entry) for entry in content["sites"])
    runs = tuple(_record(ObservedRun, entry) for entry in content["runs"])
    timesteps = tuple(_number(t, optional=True) for t in content["timesteps"])
    if not sites or not runs or not timesteps:
        raise ValueError("no sites, no runs or no steps")
    if len({site.name for site in sites}) < len(sites):
        raise ValueError("two sites have one name")
    for site in sites:
        if site.kind not in KINDS or site.cache_bytes < 0 or site.flops < 0:
            raise ValueError(f"no site of any model: {site}")
    settings = {name: content[name] for name in _SETTINGS}
    for name, value in settings.items():
        if type(value) is not _SETTINGS[name] or (type(value) is int and value < 0):
            raise ValueError(f"{name} is {value!r:.100}")
    if settings["cut"] not in CUTS or settings["num_samples"] < 1:
        raise ValueError(f"no observation is made with {settings}")
    num_runs, num_steps = len(runs), len(timesteps)
    products = _tensor(content["products"], (num_runs, len(sites), num_steps, MAX_LAG + 1))
    outputs = _tensor(content["outputs"], (num_runs, num_steps, num_steps))
    if (products[..., 0] < 0).any() or (outputs.diagonal(dim1=1, dim2=2) < 0).any():
        raise ValueError("a mean square is negative")
    if not torch.allclose(outputs, outputs.mT, rtol=0, atol=0, equal_nan=True):
        raise ValueError("outputs: two steps have one product, not two")
    return Observation(sites, runs, timesteps, products=products, outputs=outputs, **settings)


def _listed(values: torch.Tensor) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.flatten().tolist()]


def _tensor(values: Any, shape: tuple[int, ...]) -> torch.Tensor:
    if not isinstance(values, list) or len(values) != math.prod(shape):
        raise ValueError(f"products must be a list of {math.prod(shape)} numbers")
    numbers = [_number(value, optional=True) for value in values]
    known = [math.nan if number is None else number for number in numbers]
    return torch.tensor(known, dtype=torch.float64).view(shape)


def _record(kind: type[Any], entry: Any) -> Any:
    names = {f.name: f.type for f in fields(kind)}
    if not isinstance(entry, dict) or entry.keys() != names.keys():
        raise ValueError(f"{kind.__name__} has {', '.join(names)}; found {entry!r:.100}")
    for name, value in entry.items():
        if type(value).__name__ != names[name]:
            raise ValueError(f"{name} is of type {names[name]}, found {value!r:.100}")
    return kind(**entry)


def _number(value: Any, optional: bool = False) -> float | None:
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"no finite number: {value!r:.100}")
    return float(value)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
