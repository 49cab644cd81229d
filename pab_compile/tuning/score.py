"""Scores: how near results are to what they should be, with confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_SAME = 100.0


@dataclass(frozen=True)
class Score:
    """The PSNR over some prompts.

    Attributes:
        mean: in dB.
        half_width: of the 95 % confidence interval of the mean, in dB; infinite for one prompt.
    """

    mean: float
    half_width: float

    @staticmethod
    def of(values: Sequence[float]) -> Score:
        """The score of some values in dB. The interval is that of a normal distribution."""
        count = len(values)
        spread = statistics.stdev(values) / math.sqrt(count) if count > 1 else math.inf
        return Score(statistics.fmean(values), 1.96 * spread)

    def __str__(self) -> str:
        width = "" if math.isinf(self.half_width) else f" ± {self.half_width:.1f}"
        return f"{self.mean:.1f}{width}"


def psnr(result: torch.Tensor, reference: torch.Tensor) -> float:
    """Peak signal-to-noise ratio over the range of the reference in dB, at most 100."""
    peak = float(reference.max() - reference.min())
    error = float((result.double() - reference.double()).square().mean())
    if error <= peak**2 * 10 ** (-_SAME / 10):
        return _SAME
    return 10 * math.log10(peak**2 / error)
