"""Presets: the published settings of Pyramid Attention Broadcast, and three of this project.

The paper names its experiments by the ranges of spatial, temporal and cross attention (section 4).
The presets of models also have the window of the authors' code, in timestep values.

The presets of this project treat every site alike, MLPs too. All sites compute at every n-th step.
At other steps they follow the line through their last two outputs. Only sums of outputs are cached.
``benchmarks/quality.py`` measures these presets.
"""

from __future__ import annotations

from dataclasses import dataclass

from pab_compile.passes.sites.site import KINDS

DEFAULT_RANGES = {"spatial": 2, "temporal": 4, "cross": 6, "full": 2, "joint": 2}
DEFAULT_WINDOW = (0.15, 0.85)

Window = tuple[float, float] | tuple[int, int]


@dataclass(frozen=True)
class Preset:
    """Options that go together. An option that the user gives replaces that of the preset.

    Attributes:
        ranges: kind -> compute at every n-th step.
        window: part of the generation in which reuse is allowed.
        predict: order of the reuse.
        cut: ``attention``, ``gated`` or ``branch``.
        coalesce: whether sites that are reused together cache their sum.
    """

    ranges: dict[str, int]
    window: Window
    predict: int = 0
    cut: str = "attention"
    coalesce: bool = False


def _ranges(spatial: int, temporal: int, cross: int) -> dict[str, int]:
    """Ranges of the paper. Full and joint attention use the spatial one, as the authors' code."""
    return {
        "spatial": spatial,
        "temporal": temporal,
        "cross": cross,
        "full": spatial,
        "joint": spatial,
    }


def _lines(range_: int) -> Preset:
    """All sites alike. The first steps compute, since outputs change most there."""
    return Preset(dict.fromkeys(KINDS, range_), (0.1, 1.0), 1, "branch", coalesce=True)


PRESETS = {
    "pab246": Preset(_ranges(2, 4, 6), DEFAULT_WINDOW),
    "pab357": Preset(_ranges(3, 5, 7), DEFAULT_WINDOW),
    "pab579": Preset(_ranges(5, 7, 9), DEFAULT_WINDOW),
    "latte": Preset(_ranges(2, 3, 6), (100, 800)),
    "open-sora": Preset(_ranges(2, 4, 6), (450, 930)),
    "open-sora-plan": Preset(_ranges(2, 4, 6), (100, 850)),
    "linear2": _lines(2),
    "linear3": _lines(3),
    "linear4": _lines(4),
    "linear5": _lines(5),
}
