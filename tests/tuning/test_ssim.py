"""SSIM is that of scikit-image."""

from __future__ import annotations

import pytest
import torch
from skimage.metrics import structural_similarity

from pab_compile.tuning.ssim import ssim


def test_it_is_what_scikit_image_finds() -> None:
    reference = torch.rand(2, 3, 16, 20, dtype=torch.float64)
    result = reference + 0.1 * torch.randn_like(reference)
    peak = float(reference.max() - reference.min())
    pictures = zip(result.flatten(0, 1).numpy(), reference.flatten(0, 1).numpy(), strict=True)
    each = [structural_similarity(a, b, data_range=peak) for a, b in pictures]
    # Both leave out what lies within half a window of the border.
    assert ssim(result, reference) == pytest.approx(sum(each) / len(each), abs=1e-9)


def test_equal_results_give_one_and_small_ones_nothing() -> None:
    picture = torch.rand(8, 8)
    assert ssim(picture, picture) == pytest.approx(1)
    assert ssim(picture + 1, picture) != pytest.approx(1)
    assert ssim(torch.zeros(7, 7), torch.zeros(7, 7)) == 1
    assert ssim(torch.ones(7, 7), torch.zeros(7, 7)) == 0
    assert ssim(picture[:6], picture[:6]) is None
    assert ssim(picture[0], picture[0]) is None
