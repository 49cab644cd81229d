"""Least squares of logarithms: numbers that minimise the mean PSNR error over some prompts.

The result of each prompt is an affine function of the numbers. Plain least squares would let the
worst prompt decide, so each prompt is weighted by 1 / its squared error, repeatedly.

A few prompts are many equations but little evidence. So the numbers are drawn to 0, by as much as
is best for prompts that are left out of the fit, one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_ROUNDS, _ROUNDS_LEFT_OUT = 30, 10
_RIDGES = (1e-8, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_LEAST, _TINY = 1e-9, 1e-30


def least_log(
    grams: Sequence[torch.Tensor], products: Sequence[torch.Tensor], squares: Sequence[torch.Tensor]
) -> list[float]:
    """The numbers that minimise the mean logarithm of squared errors.

    Args:
        grams: per prompt the products of the moves, ``[n, n]``.
        products: per prompt the products of the moves with what is missing, ``[n]``.
        squares: per prompt the square of what is missing.
    """
    gram, product, square = (
        torch.stack(list(x)).double().cpu() for x in (grams, products, squares)
    )
    count, ridges = len(gram), torch.tensor(_RIDGES, dtype=torch.float64)
    ridge = ridges[:1]
    if count > 2:
        others = 1 - torch.eye(count, dtype=torch.float64)
        used, tried = others.repeat(len(ridges), 1), ridges.repeat_interleave(count)
        numbers = _solved(gram, product, square, used, tried, _ROUNDS_LEFT_OUT)
        errors = _errors(gram, product, square, numbers).view(len(ridges), count, count)
        left_out = errors.diagonal(dim1=1, dim2=2).clamp(min=_LEAST * square)
        ridge = ridges[left_out.log().mean(1).argmin()][None]
    everyone = torch.ones(1, count, dtype=torch.float64)
    return _solved(gram, product, square, everyone, ridge, _ROUNDS)[0].tolist()


def _solved(
    gram: torch.Tensor,
    product: torch.Tensor,
    square: torch.Tensor,
    used: torch.Tensor,
    ridges: torch.Tensor,
    rounds: int,
) -> torch.Tensor:
    """Solutions for several choices of prompts.

    Args:
        gram: ``[prompts, n, n]``.
        product: ``[prompts, n]``.
        square: ``[prompts]``.
        used: 1 or 0, ``[choices, prompts]``.
        ridges: ``[choices]``.
        rounds: how often prompts are weighted.

    Returns:
        ``[choices, n]``.
    """
    numbers = torch.zeros(len(used), product.shape[1], dtype=torch.float64)
    for _ in range(rounds):
        errors = _errors(gram, product, square, numbers).clamp(min=_LEAST * square)
        weights = used / errors.clamp(min=_TINY)
        sums = torch.einsum("cp,pij->cij", weights, gram)
        sums = sums + torch.diag_embed(ridges[:, None] * sums.diagonal(dim1=1, dim2=2) + _TINY)
        goals = torch.einsum("cp,pi->ci", weights, product)
        numbers = torch.linalg.solve(sums, goals)
    return numbers


def _errors(
    gram: torch.Tensor, product: torch.Tensor, square: torch.Tensor, numbers: torch.Tensor
) -> torch.Tensor:
    """Squared errors: ``[choices, prompts]``."""
    curved = torch.einsum("ci,pij,cj->cp", numbers, gram, numbers)
    return square - 2 * numbers @ product.T + curved
