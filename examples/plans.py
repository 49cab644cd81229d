"""The broadcast plans that the examples compare, as options of `torch.compile(backend="pab")`."""

from __future__ import annotations

from typing import Any

import digits

NONE = "none"
ALL_KINDS = ("spatial", "temporal", "cross", "full", "joint", "mlp")
RULES: dict[str, dict[str, Any]] = {
    # The paper's setting: spatial attention every 2nd step, temporal every 4th, cross every 6th;
    # full and joint attention as spatial.
    "pab246": {"ranges": "pab246"},
    "pab357": {"ranges": "pab357"},
    "pab579": {"ranges": "pab579"},
    # Every site, the MLPs too, every 3rd step; in between along the line of the last two values.
    "third-linear": {
        "ranges": dict.fromkeys(ALL_KINDS, 3),
        "predict": 1,
        "window": (0.1, 1.0),
    },
}


def plans_of(model: str) -> dict[str, dict[str, Any]]:
    """Returns the plans by name, among them the one that calibrate_digits.py chose for `model`.

    That one treats all sites alike and caches sums of their outputs.
    """
    return {**RULES, "calibrated": {"plan": digits.find_folder(model) / "plan.json"}}
