"""Small diffusion transformers drawn at random, whose attentions are known by construction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

GRID_LAYOUTS = ("b c t h w", "b t c h w", "b t h w c")
PACKED = "b s c"
TEXT_TOKENS, TEXT_CHANNELS, CHANNELS = 5, 6, 4


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        attention: kind of the self-attention.
        cross: whether a cross-attention follows.
        parallel: whether the MLP reads what the attention reads, instead of following it; with
            ``fused`` the two share one output projection.
        gated: whether the timestep gates attention and MLP.
        core: how attention is computed: ``sdpa``, ``matmul`` or ``einsum``.
        fused_qkv: one projection for queries, keys and values.
        mask: of the keys: none, boolean, or added to the scores.
    """

    attention: str
    cross: bool
    parallel: str
    gated: bool
    core: str
    fused_qkv: bool
    mask: str


@dataclass(frozen=True)
class Spec:
    """A model and the sizes that it is called with."""

    layout: str
    batch: int
    frames: int
    height: int
    width: int
    patch: int
    projection: str
    heads: int
    blocks: tuple[Block, ...]

    @property
    def kinds(self) -> Counter[str]:
        """How many attentions there are of each kind."""
        kinds = Counter(block.attention for block in self.blocks)
        kinds["cross"] += sum(block.cross for block in self.blocks)
        return +kinds


def blocks(kinds: tuple[str, ...]) -> st.SearchStrategy[Block]:
    return st.builds(
        Block,
        attention=st.sampled_from(kinds),
        cross=st.booleans(),
        parallel=st.sampled_from(("sequential", "parallel", "fused")),
        gated=st.booleans(),
        core=st.sampled_from(("sdpa", "matmul", "einsum")),
        fused_qkv=st.booleans(),
        mask=st.sampled_from(("none", "bool", "float")),
    )


@st.composite
def specs(draw: Callable[..., Any]) -> Spec:
    """Models of one or two blocks."""
    layout = draw(st.sampled_from((*GRID_LAYOUTS, PACKED)))
    packed = layout == PACKED
    kinds = ("full", "joint") if packed else ("full", "joint", "spatial", "temporal")
    return Spec(
        layout=layout,
        batch=draw(st.sampled_from((1, 2))),
        frames=draw(st.sampled_from((2, 3))),
        height=draw(st.sampled_from((4, 6))),
        width=draw(st.sampled_from((4, 6))),
        patch=1 if packed else draw(st.sampled_from((1, 2))),
        projection="linear" if packed else draw(st.sampled_from(("linear", "conv"))),
        heads=draw(st.sampled_from((1, 2, 3))),
        blocks=tuple(draw(st.lists(blocks(kinds), min_size=1, max_size=2))),
    )


class Attention(nn.Module):
    """Attention of one sequence to another, without output projection."""

    def __init__(self, spec: Spec, block: Block, width: int) -> None:
        super().__init__()
        self.spec, self.block = spec, block
        self.qkv = nn.Linear(width, 3 * width) if block.fused_qkv else None
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

    def forward(
        self, x: torch.Tensor, context: torch.Tensor | None, mask: torch.Tensor | None
    ) -> torch.Tensor:
        if context is None and self.qkv is not None:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            source = x if context is None else context
            q, k, v = self.q(x), self.k(source), self.v(source)
        q, k, v = (y.unflatten(-1, (self.spec.heads, -1)) for y in (q, k, v))
        if self.block.core == "einsum":
            scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
            scores = scores if mask is None else scores + mask
            return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        if self.block.core == "sdpa":
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
            scores = scores if mask is None else scores + mask
            out = torch.softmax(scores, dim=-1) @ v
        return out.transpose(1, 2).flatten(2)


class RandomBlock(nn.Module):
    """Norm, attention, cross-attention, MLP."""

    def __init__(self, spec: Spec, block: Block, width: int) -> None:
        super().__init__()
        self.spec, self.block = spec, block
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.modulation = nn.Linear(width, 4 * width)
        self.attention = Attention(spec, block, width)
        self.cross = Attention(spec, block, width)
        self.out, self.text_out, self.cross_out = (nn.Linear(width, width) for _ in range(3))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.fused_out = nn.Linear(3 * width, width)

    def forward(
        self, x: torch.Tensor, text: torch.Tensor, time: torch.Tensor, model: RandomDit
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``x`` is ``[batch, t, h, w, width]``, or ``[batch, s, width]`` for packed tokens."""
        shift, scale, gate, mlp_gate = self.modulation(F.silu(time)).chunk(4, dim=-1)
        ones = (1,) * (x.ndim - 2)
        shift, scale, gate, mlp_gate = (
            y.view(len(x), *ones, -1) for y in (shift, scale, gate, mlp_gate)
        )
        if not self.block.gated:
            gate = mlp_gate = torch.ones_like(gate)
        normed = self.norms[0](x) * (1 + scale) + shift
        attended, text = self._attend(normed, text, model)
        if self.block.parallel == "fused":
            both = torch.cat([attended, F.gelu(self.up(normed))], dim=-1)
            x = x + gate * self.fused_out(both)
        elif self.block.parallel == "parallel":
            mlp = self.down(F.gelu(self.up(normed)))
            x = x + gate * self.out(attended) + mlp_gate * mlp
        else:
            x = x + gate * self.out(attended)
        if self.block.cross:
            tokens = self.norms[1](x).reshape(len(x), -1, x.shape[-1])
            mask = model.mask(self.block, len(x), text.shape[1])
            crossed = model.branch("cross", lambda: self.cross(tokens, text, mask))
            x = x + self.cross_out(crossed).reshape(x.shape)
        if self.block.parallel == "sequential":
            x = x + mlp_gate * self.down(F.gelu(self.up(self.norms[2](x))))
        return x, text

    def _attend(
        self, x: torch.Tensor, text: torch.Tensor, model: RandomDit
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kind, width = self.block.attention, x.shape[-1]
        if kind == "joint":
            tokens = x.reshape(len(x), -1, width)
            both = torch.cat([self.norms[3](text), tokens], dim=1)
            mask = model.mask(self.block, len(x), both.shape[1])
            out = model.branch(kind, lambda: self.attention(both, None, mask))
            text = text + self.text_out(out[:, : text.shape[1]])
            return out[:, text.shape[1] :].reshape(x.shape), text
        if kind == "temporal":
            batch, t, h, w, _ = x.shape
            tokens = x.permute(0, 2, 3, 1, 4).reshape(batch * h * w, t, width)
        elif kind == "spatial":
            tokens = x.flatten(0, 1).flatten(1, 2)
        else:
            tokens = x.reshape(len(x), -1, width)
        mask = model.mask(self.block, len(tokens), tokens.shape[1])
        out = model.branch(kind, lambda: self.attention(tokens, None, mask))
        if kind == "temporal":
            return out.view(batch, h, w, t, width).permute(0, 3, 1, 2, 4), text
        return out.reshape(x.shape), text


class RandomDit(nn.Module):
    """The model of a spec; every attention goes through ``branch``."""

    def __init__(self, spec: Spec, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.spec = spec
        width = 8 * spec.heads
        inner = CHANNELS * spec.patch**2
        size = (1, spec.patch, spec.patch)
        if spec.projection == "conv":
            self.embed: nn.Module = nn.Conv3d(CHANNELS, width, size, stride=size)
        else:
            self.embed = nn.Linear(inner, width)
        self.text_in = nn.Linear(TEXT_CHANNELS, width)
        self.time_in = nn.Linear(width, width)
        self.blocks = nn.ModuleList(RandomBlock(spec, block, width) for block in spec.blocks)
        self.head = nn.Linear(width, inner)
        self.requires_grad_(False)

    def branch(self, kind: str, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The result of an attention; the oracle reuses here."""
        return compute()

    def mask(self, block: Block, rows: int, keys: int) -> torch.Tensor | None:
        """A mask that hides the last key from the first row's queries."""
        if block.mask == "none":
            return None
        row, key = torch.arange(rows)[:, None], torch.arange(keys)
        kept = ((row > 0) | (key < keys - 1))[:, None, None, :]
        if block.mask == "bool" and block.core == "sdpa":
            return kept
        return torch.zeros(kept.shape).masked_fill(~kept, -10.0)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
    ) -> torch.Tensor:
        x = self._embed(hidden_states)
        text = self.text_in(encoder_hidden_states)
        half = self.time_in.in_features // 2
        angles = timestep[:, None].float() * torch.logspace(0, -2, half)
        time = self.time_in(torch.cat([angles.sin(), angles.cos()], dim=-1))
        for block in self.blocks:
            x, text = block(x, text, time, self)
        return self._unembed(self.head(x))

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        spec = self.spec
        if spec.layout == PACKED:
            return self.embed(x)
        order = GRID_LAYOUTS.index(spec.layout)
        x = x.permute(((0, 1, 2, 3, 4), (0, 2, 1, 3, 4), (0, 4, 1, 2, 3))[order])
        if spec.projection == "conv":
            return self.embed(x).permute(0, 2, 3, 4, 1)
        b, c, t, h, w = x.shape
        p = spec.patch
        x = x.reshape(b, c, t, h // p, p, w // p, p).permute(0, 2, 3, 5, 1, 4, 6)
        return self.embed(x.flatten(4))

    def _unembed(self, x: torch.Tensor) -> torch.Tensor:
        spec = self.spec
        if spec.layout == PACKED:
            return x
        p = spec.patch
        b, t, h, w, _ = x.shape
        x = x.view(b, t, h, w, CHANNELS, p, p).permute(0, 4, 1, 2, 5, 3, 6)
        x = x.reshape(b, CHANNELS, t, h * p, w * p)
        order = GRID_LAYOUTS.index(spec.layout)
        return x.permute(((0, 1, 2, 3, 4), (0, 2, 1, 3, 4), (0, 2, 3, 4, 1))[order])


class Oracle(RandomDit):
    """The same model, told at every call what to reuse."""

    def __init__(self, spec: Spec, ranges: dict[str, int]) -> None:
        super().__init__(spec)
        self.ranges, self.step = ranges, 0
        self.outputs: dict[int, torch.Tensor] = {}
        self.index = 0

    def at(self, step: int, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The output at a step; steps come in order."""
        self.step, self.index = step, 0
        return self(**inputs)

    def branch(self, kind: str, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        if self.step % self.ranges.get(kind, 1) == 0:
            self.outputs[self.index] = compute()
        self.index += 1
        return self.outputs[self.index - 1]


def inputs_of(spec: Spec, num_steps: int) -> Iterator[dict[str, torch.Tensor]]:
    """Inputs of every step; the timestep is a view into a table, and the latents change."""
    generator = torch.Generator().manual_seed(1)
    sizes = {"b": spec.batch, "c": CHANNELS, "t": spec.frames, "h": spec.height, "w": spec.width}
    sizes["s"] = spec.frames * spec.height * spec.width
    shape = [sizes[axis] for axis in spec.layout.split()]
    prompt = torch.randn(spec.batch, TEXT_TOKENS, TEXT_CHANNELS, generator=generator)
    table = torch.linspace(900, 100, num_steps)
    for step in range(num_steps):
        yield {
            "hidden_states": torch.randn(*shape, generator=generator),
            "timestep": table[step].expand(spec.batch),
            "encoder_hidden_states": prompt,
        }
