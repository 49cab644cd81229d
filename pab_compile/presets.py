"""Published settings of Pyramid Attention Broadcast, by name.

The paper's experiments name ranges by spatial/temporal/cross (section 4); the model presets add the
window in timestep values that the authors' code uses for that model.
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_RANGES = {"spatial": 2, "temporal": 4, "cross": 6, "full": 2, "joint": 2}
DEFAULT_WINDOW = (0.15, 0.85)

Window = tuple[float, float] | tuple[int, int]


@dataclass(frozen=True)
class Preset:
    """Ranges per kind and the window in which they hold."""

    ranges: dict[str, int]
    window: Window


def _ranges(spatial: int, temporal: int, cross: int) -> dict[str, int]:
    """Full 3D and joint attention use the spatial setting, as the authors' code does."""
    return {
        "spatial": spatial,
        "temporal": temporal,
        "cross": cross,
        "full": spatial,
        "joint": spatial,
    }


PRESETS = {
    "pab246": Preset(_ranges(2, 4, 6), DEFAULT_WINDOW),
    "pab357": Preset(_ranges(3, 5, 7), DEFAULT_WINDOW),
    "pab579": Preset(_ranges(5, 7, 9), DEFAULT_WINDOW),
    "latte": Preset(_ranges(2, 3, 6), (100, 800)),
    "open-sora": Preset(_ranges(2, 4, 6), (450, 930)),
    "open-sora-plan": Preset(_ranges(2, 4, 6), (100, 850)),
}
