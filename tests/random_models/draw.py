"""Draws the traits of a model one by one from a seed."""

from __future__ import annotations

import random
from dataclasses import replace

from .further import further
from .spec import OF_OWN_TOKENS, PICTURE_LAYOUTS, VIDEO_LAYOUTS, WITHOUT_A_GATE, Spec


def draw(seed: int) -> Spec:
    """The model of a seed. Traits that exclude each other give way to those drawn before."""
    chance = random.Random(seed)
    pick = chance.choice
    layout = pick((*VIDEO_LAYOUTS, *PICTURE_LAYOUTS))
    is_picture, is_packed = layout in PICTURE_LAYOUTS, layout == "b s c"
    patchify = pick(("convolution", "linear", "unshuffle", "unfold"))
    stream = pick(("video", "video", "joint", "dual", "dual, then joint"))
    mixing = pick(("full", "spatial and temporal", "turns", "windows"))
    if stream != "video" or (is_picture and mixing != "windows"):
        mixing = "full"
    core = pick(("sdpa", "sdpa", "einsum", "bmm", "baddbmm", "softmax", "module", "linear"))
    grouped = pick(("none", "none", "repeat", "expand", "enable_gqa"))
    if core in ("module", "linear"):
        grouped = "none"
    if grouped == "enable_gqa" and core != "sdpa":
        grouped = "repeat"
    rotary = pick(
        ("none", "complex", "double", "half", "interleaved", "partial", "slices", "einsum")
    )
    residual = pick(
        (
            "add",
            "swapped",
            "sub",
            "alpha",
            "addcmul",
            "addmm",
            "baddbmm",
            "lerp",
            "in place",
            "float32 sum",
            "float32 stream",
            "views",
            "halved",
            "where",
            "where of sums",
        )
    )
    modulation = pick(("none", "block", "branch", "table"))
    level = pick(("sample", "sample", "frame", "token"))
    if is_picture and level == "frame":
        level = "token"
    gate = pick(("plain", "tanh", "one more", "none"))
    mlp = pick(
        (
            "gelu",
            "gelu",
            "swiglu",
            "geglu of one",
            "convolution",
            "row",
            "mixture",
            "top",
            "scattered",
            "indexed",
        )
    )
    beside = pick(("after", "after", "parallel", "fused"))
    if stream != "video" and mlp in ("convolution", "row"):
        mlp = "gelu"
    if mlp not in ("gelu", "swiglu"):
        beside = "after" if beside == "fused" else beside
    norm = pick(("pre", "pre", "post", "sandwich", "scaled", "modulated after", "around the sum"))
    if residual in WITHOUT_A_GATE or modulation == "none":
        gate = "none"
    if residual in WITHOUT_A_GATE and norm == "scaled":
        norm = "pre"
    if norm == "modulated after" and (modulation == "none" or residual in WITHOUT_A_GATE):
        norm = "post"
    front = pick(("none", "none", "none", "none", "registers", "history"))
    if (mixing != "full" or is_picture) or mlp in ("convolution", "row"):
        front = "none"
    cross = stream == "video" and pick((True, False))
    pooled = pick((True, False, False))
    has_text = cross or pooled or stream != "video"
    made = Spec(
        seed=seed,
        dtype="float32" if mlp in OF_OWN_TOKENS else pick(("float32", "float32", "bfloat16")),
        layout=layout,
        patchify=patchify,
        batch=pick((1, 2)),
        frames=1 if is_picture else pick((2, 3)),
        height=pick((2, 4)),
        width=pick((3, 4)),
        patch=1 if is_packed else pick((1, 2)),
        heads=pick((2, 2, 3)),
        depth=pick((2, 2, 3)) if stream == "dual, then joint" else pick((1, 2)),
        grid=stream == "video" and front == "none" and pick((True, False)),
        stream=stream,
        mixing=mixing,
        cross=cross,
        core=core,
        qkv=pick(("apart", "one", "kv")),
        grouped=grouped,
        qk_norm=pick(("none", "none", "rms", "layer", "by hand")),
        own_gate=chance.random() < 0.15,
        rotary=rotary,
        residual=residual,
        norm=norm,
        norm_op=pick(("layer", "rms", "by hand")),
        modulation=modulation,
        level=level,
        gate=gate,
        mlp=mlp,
        beside=beside,
        skip=pick(("none", "none", "concatenated", "added")),
        text=pick(("tensor", "list", "padded", "mask of numbers")),
        refiner=pick(("none", "none", "prompt", "timestep"))
        if cross or stream != "video"
        else "none",
        pooled=pooled,
        guidance=pick(("none", "one call", "two calls")) if has_text else "none",
        call=pick(("keywords", "positions", "dict", "dataclass", "named tuple")),
        output=pick(("tensor", "tuple", "list", "dict", "dataclass", "named tuple")),
        sigma=chance.random() < 0.2,
        timestep=pick(("table", "value", "scalar", "number")) if level == "sample" else "value",
        front=front,
        twice=stream != "dual, then joint" and chance.random() < 0.15,
        image=cross and pooled and core != "linear" and pick((True, False)),
        first=not layout.startswith("list") and chance.random() < 0.15,
        scale=chance.random() < 0.15,
        hint=pick(("none", "none", "none", "timestep", "prompt" if pooled else "timestep")),
        around="none",
        shifting="plain",
        attending="none",
        shuffled=False,
        returned=False,
        times="plain",
        checkpointed=False,
        mixed=False,
    )
    around = pick(("none", "none", "none", "latents", "scaled"))
    if layout.startswith("list") or level != "sample" or made.sigma:
        around = "none"
    return further(replace(made, around=around), random.Random(f"further {seed}"))
