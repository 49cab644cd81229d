"""SSIM: how alike two results look, by local means and covariances (Wang et al. 2004)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import avg_pool2d

_WINDOW = 7


def ssim_of_shown(
    frames: Callable[[Any], Any] | None, result: torch.Tensor, reference: torch.Tensor
) -> float | None:
    """The SSIM of what pages show of two results: frames if there are any, else all of it."""
    shown = [None if frames is None else frames(one) for one in (result, reference)]
    tensors = [one for one in shown if isinstance(one, torch.Tensor)]
    if len(tensors) < len(shown):
        return ssim(result.float(), reference.float())
    first, second = (one.movedim(-1, -3) if one.shape[-1] == 3 else one for one in tensors)
    return ssim(first.float(), second.float())


def ssim(result: torch.Tensor, reference: torch.Tensor) -> float | None:
    """The mean structural similarity over all rows and columns, the last two dimensions.

    Windows have 7 times 7 elements and equal weights. The range is that of the reference.

    Args:
        result: any shape of at least two dimensions.
        reference: the same shape.

    Returns:
        1 for equal results; None if there are no rows and columns, or fewer than a window has.
    """
    if result.ndim < 2 or min(result.shape[-2:]) < _WINDOW:
        return None
    a, b = (x.double().reshape(-1, 1, *x.shape[-2:]) for x in (result, reference))
    peak = float(b.max() - b.min())
    if peak == 0:
        return 1.0 if torch.equal(a, b) else 0.0
    number = _WINDOW**2
    unbiased = number / (number - 1)

    def mean(x: torch.Tensor) -> torch.Tensor:
        return avg_pool2d(x, _WINDOW, stride=1)

    mean_a, mean_b = mean(a), mean(b)
    var_a = unbiased * (mean(a * a) - mean_a**2)
    var_b = unbiased * (mean(b * b) - mean_b**2)
    both = unbiased * (mean(a * b) - mean_a * mean_b)
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    similar = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return float((similar / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())
