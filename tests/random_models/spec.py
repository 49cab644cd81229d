"""Traits of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields

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
        guidance: ``none``, ``one call``, ``two calls`` or ``three calls``.
        call: how inputs are given.
        output: form of the output.
        sigma: whether the model returns a variance too.
        timestep: ``table``, ``value``, ``scalar``, or a Python ``number``.
        front: what stands in front of the video's tokens: learned ``registers``, or the ``history``
            that comes with the prompt.
        twice: whether all blocks run twice, one round after the other.
        first: whether latents of a first frame stand beside the noisy ones, as further channels.
        hint: what every block of one stream adds between attention and MLP, beside the branches:
            something of the ``timestep``, of the ``prompt``, or tokens of a ``control`` video.
        around: what the output of the network is added to: ``none``, the ``latents``, or ``scaled``
            latents, with factors of the timestep.
        scale: whether a number, such as that of guidance, is embedded beside the timestep.
        image: whether cross-attention adds up one to the text and one to tokens of a picture.
            Tokens without a name are not seen in a linear attention, which then computes.
        shifting: how the modulation reaches normed tokens.
        attending: what an attention among tokens of one sequence has beside queries, keys and
            values: a ``bias``, a ``causal`` mask, a ``sink`` (a learned key), a ``cap`` of its
            scores, ``pooled`` keys, or the ``difference`` of two.
        shuffled: whether the tokens stand in another order within the blocks.
        returned: whether the model returns what its first block computed, too.
        times: what of the timestep is embedded.
        checkpointed: whether blocks are wrapped in a checkpoint.
        mixed: whether a bfloat16 model gets float32 latents and returns float32.
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
    shifting: str
    attending: str
    shuffled: bool
    returned: bool
    times: str
    checkpointed: bool
    mixed: bool

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
        if self.refiner != "none" and (self.cross or self.stream != "video"):
            # What does not read the latents is no site, so each attention counts for itself.
            found["text"] += 2 if self.attending == "difference" else 1
        return +found

    def traits(self) -> Mapping[str, object]:
        """The traits by name, without the seed."""
        return {field.name: getattr(self, field.name) for field in fields(self)[1:]}

    def __str__(self) -> str:
        return f"seed {self.seed}: " + ", ".join(f"{k}={v}" for k, v in self.traits().items())
