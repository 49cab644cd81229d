"""Spacing: what evenly spaced timesteps say of the steps that follow."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from .visible_schedule import precision_of


def is_evenly_spaced(timesteps: Sequence[float], dtype: torch.dtype) -> bool:
    """Whether timesteps have equal gaps, up to rounding that is clearly smaller than a gap.

    Args:
        timesteps: at least two.
        dtype: of the model's timestep.
    """
    gaps = [b - a for a, b in itertools.pairwise(timesteps)]
    rounding = _rounding(timesteps, dtype) if dtype.is_floating_point else 1.0
    return rounding < abs(gaps[0]) and max(gaps) - min(gaps) <= rounding


def is_at_end(timesteps: Sequence[float], dtype: torch.dtype) -> bool:
    """Whether evenly spaced timesteps have reached the picture: 0, or 1 or 1000 if they rise.

    A next one that would be there counts too. It is a step of some samplers. Timesteps that have
    gone past it, as logarithms of noise do, are not at an end.

    Args:
        timesteps: those that were read so far.
        dtype: of the model's timestep.
    """
    if len(timesteps) < 3 or not is_evenly_spaced(timesteps, dtype):
        return False
    last, following = timesteps[-1], 2 * timesteps[-1] - timesteps[-2]
    rounding = _rounding(timesteps, dtype) if dtype.is_floating_point else 0.0
    if last < timesteps[0]:
        return following <= rounding and last >= -rounding
    end = 1 if last <= 1 + rounding else 1000
    return following >= end - rounding and last <= end + rounding


def _rounding(timesteps: Sequence[float], dtype: torch.dtype) -> float:
    return 4 * precision_of(dtype) * max(map(abs, timesteps))


def has_bounds(timesteps: Sequence[float]) -> bool:
    """Whether timesteps go from 1 or 1000 to 0: the bounds of the steps, of which 0 is no step."""
    return len(timesteps) > 2 and timesteps[0] in (1, 1000) and timesteps[-1] == 0
