"""The broadcast plans that the examples compare, as options of `torch.compile(backend="pab")`."""

from __future__ import annotations

from typing import Any

NONE = "none"
PLANS: dict[str, dict[str, Any]] = {
    # The paper's setting: spatial attention every 2nd step, temporal every 4th, cross every 6th.
    "pab246": {"ranges": {"spatial": 2, "temporal": 4, "cross": 6}},
    "pab357": {"ranges": {"spatial": 3, "temporal": 5, "cross": 7}},
    "pab579": {"ranges": {"spatial": 5, "temporal": 7, "cross": 9}},
    # Every site, the MLPs too, every 3rd step; in between along the line of the last two values.
    "third-linear": {
        "ranges": {"spatial": 3, "temporal": 3, "cross": 3, "mlp": 3},
        "predict": 1,
        "window": (0.1, 1.0),
    },
}
