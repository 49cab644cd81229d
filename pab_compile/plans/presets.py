"""Settings by name: the published ones of Pyramid Attention Broadcast, and a few of ours.

The paper's experiments name ranges by spatial/temporal/cross (section 4); the model presets add the
window in timestep values that the authors' code uses for that model.

Ours treat every site alike, MLPs too: all compute at every n-th step and otherwise go on along the
line of the last two outputs, of which only sums are kept. ``benchmarks/quality.py`` measures them.
"""

from __future__ import annotations

from dataclasses import dataclass

from pab_compile.passes.sites.site import KINDS

DEFAULT_RANGES = {"spatial": 2, "temporal": 4, "cross": 6, "full": 2, "joint": 2}
DEFAULT_WINDOW = (0.15, 0.85)

Window = tuple[float, float] | tuple[int, int]


@dataclass(frozen=True)
class Preset:
    """Options that go together; each holds unless it is given by itself.

    Attributes:
        ranges: kind -> compute every so many steps.
        window: in which they hold.
        predict: order of the reuse.
        cut: ``attention`` or ``gated``.
        coalesce: whether sites that are reused together cache their sum.
    """

    ranges: dict[str, int]
    window: Window
    predict: int = 0
    cut: str = "attention"
    coalesce: bool = False


def _ranges(spatial: int, temporal: int, cross: int) -> dict[str, int]:
    """Full 3D and joint attention use the spatial setting, as the authors' code does."""
    return {
        "spatial": spatial,
        "temporal": temporal,
        "cross": cross,
        "full": spatial,
        "joint": spatial,
    }


def _lines(range_: int) -> Preset:
    """All sites alike. The first steps differ most from each other, the last need not be spared."""
    return Preset(dict.fromkeys(KINDS, range_), (0.1, 1.0), 1, "gated", coalesce=True)


PRESETS = {
    "pab246": Preset(_ranges(2, 4, 6), DEFAULT_WINDOW),
    "pab357": Preset(_ranges(3, 5, 7), DEFAULT_WINDOW),
    "pab579": Preset(_ranges(5, 7, 9), DEFAULT_WINDOW),
    "latte": Preset(_ranges(2, 3, 6), (100, 800)),
    "open-sora": Preset(_ranges(2, 4, 6), (450, 930)),
    "open-sora-plan": Preset(_ranges(2, 4, 6), (100, 850)),
    "linear3": _lines(3),
    "linear4": _lines(4),
    "linear5": _lines(5),
}
