"""Least squares of logarithms: no prompt decides alone, and weak evidence is not believed."""

from __future__ import annotations

import pytest
import torch

from pab_compile.tuning import least_log as module
from pab_compile.tuning.least_log import least_log


def fitted(moves: list[torch.Tensor], missing: list[torch.Tensor]) -> torch.Tensor:
    """The numbers for moves ``[n, elements]`` and what is missing, one per prompt."""
    grams = [m @ m.T for m in moves]
    products = [m @ x for m, x in zip(moves, missing, strict=True)]
    return torch.tensor(least_log(grams, products, [x.square().sum() for x in missing]))


def test_what_is_exact_is_found_whatever_the_sizes_of_the_prompts() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted = torch.tensor([0.7, -1.3])
    moves = [size * torch.randn(2, 50, generator=generator) for size in (1, 100, 0.01)]
    found = fitted(moves, [wanted @ m for m in moves])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_numbers_that_differ_from_prompt_to_prompt_are_drawn_to_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    # Every prompt wants other numbers: those of some are worse than 0 for another one.
    wanted = torch.randn(5, 8, generator=generator)
    moves = [torch.randn(8, 50, generator=generator) for _ in wanted]
    found = fitted(moves, [w @ m for w, m in zip(wanted, moves, strict=True)])
    same = fitted(moves, [wanted[0] @ m for m in moves])
    monkeypatch.setattr(module, "_RIDGES", module._RIDGES[:1])
    believed = fitted(moves, [w @ m for w, m in zip(wanted, moves, strict=True)])
    assert found.norm() < 0.95 * believed.norm()
    torch.testing.assert_close(same, wanted[0], rtol=1e-4, atol=1e-4)
