"""The broadcast plans that the examples compare, as options of `torch.compile(backend="pab")`."""

from __future__ import annotations

from typing import Any

import digits

NONE = "none"
TUNED = (10, 7)
"""Of 30 steps, how many the tuned plans compute."""
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


def plan_file(computed: int) -> str:
    """Returns the name of the plan file with so many computed steps, in a model's folder."""
    return f"plan_{computed}.json"


def plans_of(model: str) -> dict[str, dict[str, Any]]:
    """Returns the plans by name, among them those that `tune_digits.py` made for `model`."""
    folder = digits.find_folder(model)
    return RULES | {f"tuned-{count}": {"plan": folder / plan_file(count)} for count in TUNED}
