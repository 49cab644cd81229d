"""Measured: what a page shows besides the statistics of its generation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Measured:
    """What was measured besides.

    Attributes:
        speed: seconds without reuse / seconds with it.
        quality: what was measured of the quality, as a text.
        curves: kind -> mean squared difference to the step before, per step; None where there is
            none.
        videos: name -> a file, or frames (``films``).
    """

    speed: float | None = None
    quality: str = ""
    curves: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    videos: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All but the videos, of which the names are left, in types of JSON. NaN is None."""
        curves = {
            kind: [value if value is not None and math.isfinite(value) else None for value in curve]
            for kind, curve in self.curves.items()
        }
        return {
            "speed": self.speed,
            "quality": self.quality,
            "curves": curves,
            "videos": list(self.videos),
        }
