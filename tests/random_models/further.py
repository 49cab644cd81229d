"""Rarer traits, drawn after all others: most models have a few of them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from .spec import WITHOUT_A_GATE, Spec

RESIDUALS = (
    "addcmul in place",
    "addcdiv",
    "scaled in place",
    "negative",
    "stacked",
    "parts",
    "parts in place",
    "dropout",
    "filled",
    "promoted",
)
IN_PLACE = ("in place", "addcmul in place", "scaled in place", "parts in place")
BY_HAND = ("einsum", "bmm", "baddbmm", "softmax")


def further(spec: Spec, chance: random.Random) -> Spec:
    """The same model with some rarer traits, each as far as the others allow it."""
    pick = chance.choice

    def rarely(share: float = 0.15) -> bool:
        return chance.random() < share

    changed: dict[str, Any] = {}
    residual = pick(RESIDUALS)
    if rarely(0.35) and spec.residual not in WITHOUT_A_GATE:
        changed["residual"] = residual
    shifting = pick(("addcmul", "float32", "parts", "where", "repeated"))
    if rarely(0.3) and spec.modulation != "none":
        changed["shifting"] = shifting
    attending = pick(("bias", "causal", "sink", "cap", "pooled", "difference"))
    by_hand = spec.core in BY_HAND
    if rarely(0.3) and (by_hand or (spec.core == "sdpa" and attending != "cap")):
        changed["attending"] = attending
    qk_norm = pick(("whole", "unit"))
    if rarely():
        changed["qk_norm"] = qk_norm
    mlp = pick(("shared", "chunked", "squared"))
    if rarely(0.2) and spec.mlp == "gelu" and (spec.beside != "fused" or mlp == "squared"):
        changed["mlp"] = mlp
    text = pick(("squeezed", "layers"))
    if rarely(0.2) and spec.text == "tensor":
        changed["text"] = text
    is_free = spec.mixing == "full" and spec.mlp not in ("convolution", "row") and not spec.grid
    changed["shuffled"] = rarely() and is_free
    changed["returned"] = rarely()
    times = pick(("scaled", "inverted", "logarithm", "looked up"))
    if rarely(0.3):
        changed["times"] = times
    if rarely() and spec.guidance == "two calls":
        changed["guidance"] = "three calls"
    if spec.first and spec.stream in ("video", "joint") and rarely(0.5):
        changed["hint"] = "control"
    in_place = changed.get("residual", spec.residual) in IN_PLACE
    changed["checkpointed"] = rarely(0.1) and not in_place
    if spec.mlp == "top":  # a rounding would choose another expert
        changed["dtype"] = "float32"
    dtype = changed.get("dtype", spec.dtype)
    changed["mixed"] = rarely(0.3) and dtype == "bfloat16"
    return replace(spec, **changed)
