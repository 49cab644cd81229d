"""Traits of a model, drawn one by one from a seed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

VIDEO_LAYOUTS = ("b c t h w", "b t c h w", "b t h w c", "b s c", "list of c t h w")
PICTURE_LAYOUTS = ("b c h w", "b h w c")
WITHOUT_A_GATE = ("addmm", "baddbmm")
"""Residuals whose last matrix product is a part of the sum."""
OF_OWN_TOKENS = ("scattered", "indexed")
"""MLPs that choose tokens. In bfloat16 a rounding would change the choice."""


@dataclass(frozen=True)
class Spec:
    """The traits of one model, and how it is called.

    Attributes:
        seed: that it was drawn from.
        dtype: of weights and inputs: ``float32`` or ``bfloat16``.
        layout: of the latents.
        patchify: how patches become tokens.
        batch: videos per call, without guidance.
        frames: of a video; 1 for pictures.
        height: of a frame, in patches.
        width: likewise.
        patch: edge of a patch.
        heads: of every attention, eight channels each.
        depth: number of blocks.
        grid: whether tokens stay ``[b, t, h, w, c]`` instead of ``[b, s, c]``.
        stream: ``video``, ``joint`` (video and text in one), ``dual`` (two streams) or ``dual, then
            joint``.
        mixing: ``full``, or ``spatial and temporal`` in every block, or by ``turns``. For videos.
            ``windows`` are rows of a frame; every second block shifts them.
        cross: whether blocks have cross-attention.
        core: how attention is written.
        qkv: how queries, keys and values are projected.
        grouped: how fewer heads of keys become as many as those of queries.
        qk_norm: of queries and keys.
        own_gate: whether the attention scales its output by a gate of its input.
        rotary: how positions turn queries and keys.
        residual: how a branch is added.
        norm: where a branch is normed.
        norm_op: how.
        modulation: how the timestep reaches the blocks.
        level: whether the timestep has a number per ``sample``, ``frame`` or ``token``.
        gate: of branches with modulation.
        mlp: its form. Experts see all tokens (``mixture``, ``top``), or those that they choose.
        beside: whether the MLP is ``after`` the attention, ``parallel`` to it or ``fused``.
        skip: how the last block reads what the first one read.
        text: form of the prompt.
        refiner: whether an attention among the text's tokens comes first.
        pooled: whether a vector of the prompt joins the timestep's.
        guidance: ``none``, ``one call`` or ``two calls``.
        call: how inputs are given.
        output: form of the output.
        sigma: whether the model returns a variance too.
        timestep: ``table``, ``value``, ``scalar``, or a Python ``number``.
        front: what stands in front of the video's tokens: learned ``registers``, or the ``history``
            that comes with the prompt.
        twice: whether all blocks run twice, one round after the other.
        first: whether latents of a first frame stand beside the noisy ones, as further channels.
        hint: what every block of one stream adds between attention and MLP, beside the branches:
            something of the ``timestep`` or of the ``prompt``.
        around: what the output of the network is added to: ``none``, the ``latents``, or ``scaled``
            latents, with factors of the timestep.
        scale: whether a number, such as that of guidance, is embedded beside the timestep.
        image: whether cross-attention adds up one to the text and one to tokens of a picture.
            Tokens without a name are not seen in a linear attention, which then computes.
    """

    seed: int
    dtype: str
    layout: str
    patchify: str
    batch: int
    frames: int
    height: int
    width: int
    patch: int
    heads: int
    depth: int
    grid: bool
    stream: str
    mixing: str
    cross: bool
    core: str
    qkv: str
    grouped: str
    qk_norm: str
    own_gate: bool
    rotary: str
    residual: str
    norm: str
    norm_op: str
    modulation: str
    level: str
    gate: str
    mlp: str
    beside: str
    skip: str
    text: str
    refiner: str
    pooled: bool
    guidance: str
    call: str
    output: str
    sigma: bool
    timestep: str
    front: str
    twice: bool
    image: bool
    first: bool
    scale: bool
    hint: str
    around: str

    @property
    def channels(self) -> int:
        """Channels of a token."""
        return 8 * self.heads

    @property
    def num_tokens(self) -> int:
        """Tokens of one video."""
        return self.frames * self.height * self.width

    @property
    def num_front(self) -> int:
        """Tokens in front of the video's."""
        return {"none": 0, "registers": 2, "history": 3}[self.front]

    @property
    def is_picture(self) -> bool:
        """Whether the latents have no frames."""
        return self.layout in PICTURE_LAYOUTS

    @property
    def has_text(self) -> bool:
        """Whether the model reads a prompt."""
        return self.cross or self.pooled or self.stream != "video"

    def streams(self) -> tuple[str, ...]:
        """For every block: ``video``, ``joint`` or ``dual``."""
        if self.stream == "dual, then joint":
            return ("dual",) + ("joint",) * (self.depth - 1)
        return (self.stream,) * self.depth

    def mixings(self) -> tuple[tuple[str, ...], ...]:
        """For every block, the kinds of its attentions within the video."""
        whole = "spatial" if self.is_picture else "full"
        every = {
            "full": [(whole,)],
            "spatial and temporal": [("spatial", "temporal")],
            "turns": [("spatial",), ("temporal",)],
            "windows": [("spatial",)],
        }[self.mixing]
        return tuple(every[number % len(every)] for number in range(self.depth))

    @property
    def kinds(self) -> Counter[str]:
        """How many attentions there are of each kind."""
        found: Counter[str] = Counter()
        for stream, mixing in zip(self.streams(), self.mixings(), strict=True):
            found.update(mixing if stream == "video" else ("joint",))
            found["cross"] += self.cross and stream == "video"
        if self.twice:
            found += found
        if self.front == "history":  # other tokens than the video's
            found["joint"] += found.pop("full", 0)
        found["text"] += self.refiner != "none" and (self.cross or self.stream != "video")
        return +found

    def traits(self) -> Mapping[str, object]:
        """The traits by name, without the seed."""
        return {field.name: getattr(self, field.name) for field in fields(self)[1:]}

    def __str__(self) -> str:
        return f"seed {self.seed}: " + ", ".join(f"{k}={v}" for k, v in self.traits().items())


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
    )
    around = pick(("none", "none", "none", "latents", "scaled"))
    if layout.startswith("list") or level != "sample" or made.sigma:
        return made
    return replace(made, around=around)
