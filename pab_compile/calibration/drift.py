"""Drift: how far reuse moves the latents, to first order, from an observation.

A candidate plan has one entry per step, which holds for all sites: ``COMPUTE`` or the order of the
reuse. At a step that reuses, a prediction replaces the model's output ``v[s]``. The prediction is
made from the outputs of the last computed steps. The sampler multiplies it by ``b[s]`` and adds it
to the latents. So the error of the latents after a step is a sum over the steps so far that reuse.
The terms of the sum are::

    u[s] = b[s] * (v[s] - sum over j of w[j] * v[p[j]])

The outputs here are those of the run without reuse. Their products are known. Errors of
neighbouring steps add up if they have the same direction, and cancel if they have opposite ones.

The error of a candidate is the mean over all steps of the squared distance. All steps count, since
an early error changes the inputs of the model at all later steps, even if it cancels in the end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from pab_compile.plans.plan import COMPUTE, MAX_ORDER

from .observation import Observation

_CHUNK = 2**21
_RELEVANT = 1e-10
"""Directions with a smaller eigenvalue, relative to the largest one, are left out."""


class Drift:
    """Errors of many candidates at once.

    Args:
        products: of the outputs, float64 ``[steps, steps]``; NaN where an output is not known.
        step_sizes: ``b``, one per step.
        positions: one per step; predictions are polynomials of these numbers.
        max_distance: most steps between a reused step and the computed one before it.
    """

    def __init__(
        self,
        products: torch.Tensor,
        step_sizes: Sequence[float],
        positions: Sequence[float],
        max_distance: int | None = None,
    ) -> None:
        self.num_steps = len(products)
        self._known = ~products.diagonal().isnan()
        self._positions = torch.tensor(positions, dtype=torch.float64)
        self._max_distance = self.num_steps if max_distance is None else max_distance
        self._sizes = torch.tensor(step_sizes, dtype=torch.float64)
        # Any vectors with these products can replace the outputs.
        values, vectors = torch.linalg.eigh(products.nan_to_num(0.0))
        kept = values > _RELEVANT * values[-1].clamp(min=0)
        self._outputs = vectors[:, kept] * values[kept].sqrt()
        path = (self._sizes[:, None] * self._outputs).sum(0).square().sum()
        self._scale = 1 / path if path > 0 else math.inf

    def __call__(self, entries: torch.Tensor) -> torch.Tensor:
        """Mean squared distances, relative to that from first to last latents: ``[candidates]``.

        An error is infinite if a reuse needs an unknown output, or is too far from the computed
        step before it. The order of a reuse is limited by the number of computed steps before it.

        Args:
            entries: int64 ``[candidates, steps]``; the first step computes.
        """
        size = max(1, _CHUNK // max(1, self._outputs.numel()))
        return torch.cat([self._errors(chunk) for chunk in entries.split(size)])

    def _errors(self, entries: torch.Tensor) -> torch.Tensor:
        reused = entries != COMPUTE
        sources = self._sources(reused)
        weights = self._weights(entries, sources)
        missed = self._outputs.expand(len(entries), -1, -1).clone()
        for source, weight in zip(sources, weights, strict=True):
            missed -= weight[..., None] * self._outputs[source.clamp(min=0)]
        steps = missed * (self._sizes * reused)[..., None]
        errors = steps.cumsum(1).square().sum(2).mean(1) * self._scale
        here = torch.arange(self.num_steps)
        bad = reused & (~self._known | (here - sources[0] > self._max_distance))
        for source, weight in zip(sources, weights, strict=True):
            bad |= reused & (weight != 0) & ~self._known[source.clamp(min=0)]
        return torch.where(bad.any(1), math.inf, torch.where(reused.any(1), errors, 0.0))

    def _sources(self, reused: torch.Tensor) -> list[torch.Tensor]:
        """The computed steps before each step, newest first; -1 where there are no more."""
        newest = torch.arange(self.num_steps).expand_as(reused).masked_fill(reused, -1)
        newest = newest.cummax(1).values
        before = torch.cat([torch.full_like(newest[:, :1], -1), newest[:, :-1]], 1)
        sources = [before]
        for _ in range(MAX_ORDER):
            older = before.gather(1, sources[-1].clamp(min=0))
            sources.append(older.masked_fill(sources[-1] < 0, -1))
        return sources

    def _weights(self, entries: torch.Tensor, sources: list[torch.Tensor]) -> list[torch.Tensor]:
        """Weight of each source in the prediction, as in ``lagrange``; 0 beyond the order."""
        order = torch.minimum(entries, (torch.stack(sources) >= 0).sum(0) - 1)
        at = [self._positions[source.clamp(min=0)] for source in sources]
        weights = []
        for i in range(len(sources)):
            weight = (i <= order).double()
            for j in range(len(sources)):
                if i != j:
                    both = (i <= order) & (j <= order)
                    gap = torch.where(both, at[i] - at[j], 1.0)
                    weight = weight * torch.where(both, (self._positions - at[j]) / gap, 1.0)
            weights.append(weight)
        return weights


def observed_drift(
    observation: Observation, positions: Sequence[float], max_distance: int | None = None
) -> Drift:
    """The drift for the model and the sampler that were observed.

    The products are means over lanes and generations, so the errors of all of them count.
    """
    missing = observation.mean_square().isnan().any(1).any(0)  # a site did not run
    products = observation.outputs.mean(0)  # NaN where any run lacks a step
    products = products.masked_fill(missing[:, None] | missing, math.nan)
    return Drift(products, step_sizes(observation), positions, max_distance)


def step_sizes(observation: Observation) -> list[float]:
    """How far the sampler goes at each step, up to a factor.

    This is the distance to the next timestep. For falling timesteps the last step goes to 0. For
    rising ones it is as long as the step before. All are 1 if a timestep is unknown or their
    direction changes.
    """
    known = [t for t in observation.timesteps if t is not None]
    steps = [b - a for a, b in itertools.pairwise(known)]
    if len(known) < observation.num_steps or not steps:
        return [1.0] * observation.num_steps
    if all(step < 0 for step in steps):
        return [*(-step for step in steps), max(known[-1], 0.0)]
    if all(step > 0 for step in steps):
        return [*steps, steps[-1]]
    return [1.0] * observation.num_steps
