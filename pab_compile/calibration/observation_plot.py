"""The picture of an observation: a curve per kind, and a heat map of all sites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pab_compile.errors import PabError
from pab_compile.passes.sites.site import KINDS

_SMALLEST = 1e-12


def plot_changes(
    difference: torch.Tensor, change: torch.Tensor, names: Sequence[str], kinds: Sequence[str]
) -> Any:
    """Draw how much outputs change from step to step.

    The left plot has the mean squared difference to the step before. It is averaged over the sites
    of each kind, as in figure 2 of the paper. The right plot has its root relative to the norm of
    the output, for every site.

    Args:
        difference: mean squared difference to the step before, ``[sites, steps]``.
        change: relative error of repeating the step before, ``[sites, steps]``.
        names: name per site.
        kinds: kind per site.

    Returns:
        A ``matplotlib.figure.Figure``. Its ``savefig`` writes a file.

    Raises:
        PabError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PabError("Plots need matplotlib: pip install matplotlib.") from error
    figure = Figure(figsize=(12, 5), layout="constrained")
    curves, heat = figure.subplots(1, 2)
    for kind in (kind for kind in KINDS if kind in kinds):
        sites = [index for index, other in enumerate(kinds) if other == kind]
        curves.plot(range(difference.shape[-1]), difference[sites].mean(0).tolist(), label=kind)
    curves.set(yscale="log", xlabel="step", ylabel="mean squared difference to the step before")
    curves.legend()
    image = heat.imshow(
        change.clamp(min=_SMALLEST).log10().where(~change.isnan(), torch.nan).numpy(),
        aspect="auto",
        interpolation="nearest",
    )
    figure.colorbar(image, ax=heat, label="log10 of the relative change")
    heat.set(xlabel="step", ylabel="site")
    shown = range(0, len(kinds), max(1, len(kinds) // 24))
    heat.set_yticks(list(shown), [names[index] for index in shown], fontsize=6)
    return figure
