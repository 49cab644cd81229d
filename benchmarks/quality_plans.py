"""The plans that `benchmarks.quality` compares, by the family of the demo's model.

PAB's settings for full and joint attention are those for spatial attention, as in the authors' code
(for CogVideoX: every 2nd step at timesteps between 100 and 850).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .examples import plans

Options = dict[str, Any]


def _attention(spatial: int, temporal: int, cross: int) -> Options:
    return {"ranges": {"spatial": spatial, "temporal": temporal, "cross": cross}}


def _every(range_: int, order: int) -> Options:
    ranges = dict.fromkeys(plans.ALL_KINDS, range_)
    return {"ranges": ranges, "predict": order, "window": (0.1, 1.0)}


def _tuned(model: str) -> dict[str, Options]:
    folder = plans.digits.find_folder(model)
    return {f"tuned, {n} of 30": {"plan": folder / plans.plan_file(n)} for n in (15, *plans.TUNED)}


def gate_cross(site: Any, step: int, num_steps: int, _: float | None) -> int | None:
    """Cross-attention is computed in the first third of the steps, then repeated to the end."""
    return 0 if site.kind == "cross" and step >= num_steps // 3 else None


def middle_blocks(num_blocks: int) -> Callable[..., int | None]:
    """All but the first and last blocks are repeated at every other step."""

    def plan(site: Any, step: int, num_steps: int, _: float | None) -> int | None:
        block = re.search(r"\.(\d+)\.?", site.name)
        is_middle = block is not None and 0 < int(block[1]) < num_blocks - 1
        return 0 if is_middle and step % 2 and step >= 0.1 * num_steps else None

    return plan


_BROADCAST: dict[str, Options] = {
    name.upper(): {"ranges": name} for name in ("pab246", "pab357", "pab579")
}
_PREDICTED: dict[str, Options] = {
    "PAB246, linear": {"ranges": "pab246", "predict": 1},
    "all sites, every 3rd, repeat": _every(3, 0),
    "all sites, every 3rd, linear": _every(3, 1),
    "linear3, quadratic": {"ranges": "linear3", "predict": 2},
    **{name: {"ranges": name} for name in ("linear2", "linear3", "linear4", "linear5")},
    **{
        f"{name}, whole output": {"ranges": name, "cut": "output"}
        for name in ("linear3", "linear4", "linear5")
    },
}

PLANS: dict[str, dict[str, Options]] = {
    "latte": {
        **_BROADCAST,
        "uniform 3/3/3": _attention(3, 3, 3),
        "inverted 6/4/2": _attention(6, 4, 2),
        "spatial alone, 2": _attention(2, 1, 1),
        "temporal alone, 4": _attention(1, 4, 1),
        "cross alone, 6": _attention(1, 1, 6),
        "cross gated off (T-GATE)": {"plan": gate_cross},
        "middle blocks, every 2nd": {"plan": middle_blocks(3)},
        **_tuned("latte"),
        **_PREDICTED,
    },
    "joint": {
        **_BROADCAST,
        "PAB for CogVideoX": {"ranges": {"joint": 2}, "window": (100, 850)},
        "MLPs alone, 2": {"ranges": {"mlp": 2}},
        "middle blocks, every 2nd": {"plan": middle_blocks(4)},
        **_tuned("joint"),
        **_PREDICTED,
    },
}
"""Family -> name -> options; a triple is spatial/temporal/cross."""
