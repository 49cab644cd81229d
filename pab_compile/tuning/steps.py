"""Which steps to compute: a first choice from runs that compute every step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from pab_compile.calibration.drift import Drift
from pab_compile.calibration.search import best_entries
from pab_compile.plans.plan import COMPUTE, MAX_ORDER

from .fit import Target

_FEWER = 2
"""The search starts with this many computed steps fewer."""
_MAX_DISTANCE = 12


def choose_steps(targets: Sequence[Target], lengths: Sequence[float], count: int) -> list[int]:
    """The computed steps whose predictions would move the latents least, to first order.

    What the sampler adds at a step, per length, stands for the model's output. See
    ``calibration.drift`` for the error of a choice and ``calibration.search`` for the search.

    Args:
        targets: runs that compute every step.
        lengths: of the steps.
        count: number of computed steps.
    """
    num_steps = len(lengths)
    products = torch.zeros(num_steps, num_steps, dtype=torch.float64)
    for target in targets:
        path = [each.double().flatten() for each in target.latents]
        if target.result.shape == target.latents[-1].shape:
            path.append(target.result.double().flatten())
        moves = [b - a for a, b in itertools.pairwise(path)]
        moves += [moves[-1]] * (num_steps - len(moves))  # the last one is not known
        outputs = torch.stack([m / b for m, b in zip(moves, lengths, strict=True)])
        scale = sum(float(move.square().sum()) for move in moves)
        products += (outputs @ outputs.T).cpu() / max(scale, 1e-30)
    drift = Drift(products, lengths, [float(step) for step in range(num_steps)], _MAX_DISTANCE)
    counts = range(max(2, count - _FEWER), count + 1)
    *_, found = best_entries(drift, num_steps, counts, MAX_ORDER)
    return [step for step, entry in enumerate(found.entries) if entry == COMPUTE]
