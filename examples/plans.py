"""The broadcast plans that the examples compare, as options of `torch.compile(backend="pab")`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CALIBRATED = Path(__file__).parent / "digits_latte" / "plan.json"
NONE = "none"
ALL_KINDS = ("spatial", "temporal", "cross", "full", "joint", "mlp")
PLANS: dict[str, dict[str, Any]] = {
    # The paper's setting: spatial attention every 2nd step, temporal every 4th, cross every 6th;
    # full and joint attention as spatial.
    "pab246": {"ranges": "pab246"},
    "pab357": {"ranges": "pab357"},
    "pab579": {"ranges": "pab579"},
    # All sites alike, sums of their outputs, steps and orders chosen by calibrate_digits.py.
    "calibrated": {"plan": CALIBRATED},
    # Every site, the MLPs too, every 3rd step; in between along the line of the last two values.
    "third-linear": {
        "ranges": dict.fromkeys(ALL_KINDS, 3),
        "predict": 1,
        "window": (0.1, 1.0),
    },
}
