"""The picture of an observation: a curve per kind, and a heat map of all sites."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pab_compile.passes.errors import PabError
from pab_compile.passes.sites import KINDS

if TYPE_CHECKING:
    from .observation import Observation

_SMALLEST = 1e-12


def plot_observation(observation: Observation) -> Any:
    """Draw how much outputs change from step to step.

    Left the mean squared difference to the step before, averaged over the sites of each kind (the
    curve of the paper's figure 2); right its root relative to the norm of the output, site by site.

    Returns:
        A ``matplotlib.figure.Figure``; ``savefig`` writes it.

    Raises:
        PabError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PabError("Plots need matplotlib: pip install matplotlib.") from error
    figure = Figure(figsize=(12, 5), layout="constrained")
    curves, heat = figure.subplots(1, 2)
    steps = range(observation.num_steps)
    difference = observation.difference().nanmean(0)
    kinds = [site.kind for site in observation.sites]
    for kind in (kind for kind in KINDS if kind in kinds):
        rows = [index for index, other in enumerate(kinds) if other == kind]
        curves.plot(steps, difference[rows].mean(0).tolist(), label=kind)
    curves.set(yscale="log", xlabel="step", ylabel="mean squared difference to the step before")
    curves.legend()
    change = observation.relative_error(order=0, distance=1).nanmean(0)
    image = heat.imshow(
        change.clamp(min=_SMALLEST).log10().where(~change.isnan(), torch.nan).numpy(),
        aspect="auto",
        interpolation="nearest",
    )
    figure.colorbar(image, ax=heat, label="log10 of the relative change")
    heat.set(xlabel="step", ylabel="site")
    shown = range(0, len(kinds), max(1, len(kinds) // 24))
    heat.set_yticks(list(shown), [observation.sites[index].name for index in shown], fontsize=6)
    return figure
