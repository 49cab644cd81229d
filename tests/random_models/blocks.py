"""Blocks of one stream: branches with their sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from .attention import Attention, angles_of, norm_of
from .parts import Mlp, Residual, chosen
from .sites import Site
from .spec import Spec

Tensor = torch.Tensor
Modulated = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Shift, scale and gate of one branch; each None if the timestep does not reach it."""


@dataclass
class Given:
    """What all blocks read.

    Attributes:
        text: tokens of the prompt, or None.
        mask: which of them are there, or None.
        emb: embedded timestep per token of the video, ``[b, 1 or s, c]``.
        shared: of adaLN-single, likewise.
        positions: of the tokens of the video, ``[s, axes]``.
        image: tokens of a picture, or None.
        pooled: embedded vector of the prompt, ``[b, 1, c]``, or None.
        control: tokens of a control video, ``[b, s, c]``, or None.
    """

    text: Tensor | None
    mask: Tensor | None
    emb: Tensor
    shared: Tensor | None
    positions: Tensor
    image: Tensor | None = None
    pooled: Tensor | None = None
    control: Tensor | None = None

    def for_text(self, x: Tensor | None, joined: int) -> Tensor | None:
        """An embedding for the text, and for the video behind it if ``joined`` tokens of text."""
        if x is None or x.shape[1] == 1:
            return x
        first = x[:, :1]
        return torch.cat([first.expand(-1, joined, -1), x], 1) if joined else first

    def behind(self, num: int) -> Given:
        """With as many registers in front of the video, which have no place."""
        first = self.positions.new_zeros(num, self.positions.shape[1])
        return replace(
            self,
            emb=self.for_text(self.emb, num),
            shared=self.for_text(self.shared, num),
            control=None if self.control is None else F.pad(self.control, (0, 0, num, 0)),
            positions=torch.cat([first, self.positions]),
        )


def modulation_site(spec: Spec) -> Site:
    """A site of what only branches read; of one vector per sample, which no reuse leaves out."""
    return Site("modulation", "always" if spec.level == "sample" else "modulation")


class Modulation(nn.Module):
    """Shifts, scales and gates of several branches."""

    def __init__(self, spec: Spec, count: int) -> None:
        super().__init__()
        self.spec, self.count, width = spec, count, spec.channels
        self.site = modulation_site(spec)
        if spec.modulation == "block":
            self.project = nn.Linear(width, 3 * count * width)
        elif spec.modulation == "branch":
            self.projects = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(count))
        elif spec.modulation == "table":
            self.table = nn.Parameter(torch.randn(3 * count, width) / 2)

    def forward(self, emb: Tensor, shared: Tensor | None, shape: Sequence[int]) -> list[Modulated]:
        """Of an embedding per token, for a stream of some shape."""
        if self.spec.modulation == "none":
            return [(None, None, None)] * self.count
        return self.site(lambda: self._made(emb, shared, shape))

    def _made(self, emb: Tensor, shared: Tensor | None, shape: Sequence[int]) -> list[Modulated]:
        spec, width = self.spec, self.spec.channels
        if spec.modulation == "block":
            parts = self.project(F.silu(emb)).chunk(3 * self.count, -1)
        elif spec.modulation == "branch":
            parts = [p for project in self.projects for p in project(F.silu(emb)).chunk(3, -1)]
        else:
            assert shared is not None
            six = shared.unflatten(-1, (6, width))
            rows = torch.cat([six] * self.count, -2)[..., : 3 * self.count, :]
            parts = (rows + self.table).unbind(-2)
        if len(shape) == 5:
            parts = [self.as_grid(part) for part in parts]
        found: list[Modulated] = []
        for number in range(self.count):
            shift, scale, gate = parts[3 * number : 3 * number + 3]
            found.append((shift, scale, self._gate(gate)))
        return found

    def _gate(self, gate: Tensor) -> Tensor | None:
        form = self.spec.gate
        if form == "none":
            return None
        return {"plain": gate, "tanh": gate.tanh(), "one more": 1 + gate}[form]

    def as_grid(self, x: Tensor) -> Tensor:
        """A vector per token ``[b, 1 or s, c]``, laid out as the tokens of a grid."""
        spec = self.spec
        if x.shape[1] == 1:
            return x[:, None, None]
        return x.unflatten(1, (spec.frames, spec.height, spec.width))


class Branch(nn.Module):
    """Norms and residuals around what a function computes, for one or several streams.

    Attributes:
        attention: the site before the gate.
        whole: the site of all that is added.
    """

    def __init__(self, spec: Spec, kind: str, streams: int = 1) -> None:
        super().__init__()
        self.spec = spec
        self.before = nn.ModuleList(norm_of(spec.norm_op, spec.channels) for _ in range(streams))
        self.after = nn.ModuleList(norm_of(spec.norm_op, spec.channels) for _ in range(streams))
        self.sums = nn.ModuleList(Residual(spec) for _ in range(streams))
        self.attention, self.whole = Site(kind, "attention"), Site(kind, "branch")

    def forward(
        self,
        streams: list[Tensor],
        modulated: list[Modulated],
        compute: Callable[[list[Tensor]], list[Tensor]],
        is_mixed: bool = False,
    ) -> list[Tensor]:
        """Add what is computed from the streams to them.

        Args:
            streams: the streams.
            modulated: per stream.
            compute: gets what is normed and modulated.
            is_mixed: whether ``compute`` itself lets its attention pass ``self.attention``.
        """

        def read() -> list[Tensor]:
            rows = zip(range(len(streams)), streams, modulated, strict=True)
            return [self._before(number, x, m) for number, x, m in rows]

        def own() -> list[Tensor]:
            return [self._normed(number, y) for number, y in enumerate(compute(read()))]

        gates = [gate for *_, gate in modulated]
        if self.whole.now is None:
            ys = [self._modulated_after(y, m) for y, m in zip(own(), modulated, strict=True)]
            rows = zip(self.sums, streams, ys, gates, strict=True)
            out = [add(x, y, gate) for add, x, y, gate in rows]
            return [self._around(number, x) for number, x in enumerate(out)]

        def last() -> list[Tensor]:
            return [add.last(y) for add, y in zip(self.sums, own(), strict=True)]

        def added() -> list[Tensor]:
            ys = last() if is_mixed else self.attention(last)
            ys = [self._modulated_after(y, m) for y, m in zip(ys, modulated, strict=True)]
            return [a.addend(y, gate) for a, y, gate in zip(self.sums, ys, gates, strict=True)]

        rows = zip(self.sums, streams, self.whole(added), strict=True)
        out = [add.plus(x, y) for add, x, y in rows]
        return [self._around(number, x) for number, x in enumerate(out)]

    def _before(self, number: int, x: Tensor, modulated: Modulated) -> Tensor:
        x = x.to(getattr(torch, self.spec.dtype))
        if self.spec.norm in ("pre", "sandwich", "scaled"):
            x = self.before[number](x)
        if self.spec.norm != "modulated after":
            x = _shifted(self.spec.shifting, x, modulated)
        return x

    def _normed(self, number: int, y: Tensor) -> Tensor:
        is_after = self.spec.norm in ("post", "sandwich", "modulated after")
        return self.after[number](y) if is_after else y

    def _modulated_after(self, y: Tensor, modulated: Modulated) -> Tensor:
        return (
            _shifted(self.spec.shifting, y, modulated) if self.spec.norm == "modulated after" else y
        )

    def _around(self, number: int, x: Tensor) -> Tensor:
        if self.spec.norm != "around the sum":
            return x
        return self.after[number](x.to(getattr(torch, self.spec.dtype))).to(x.dtype)


def _shifted(form: str, x: Tensor, modulated: Modulated) -> Tensor:
    shift, scale, _ = modulated
    if shift is None or scale is None:
        return x
    if form == "addcmul":
        return torch.addcmul(shift, x, 1 + scale)
    if form == "float32":
        return (x.float() * (1 + scale.float()) + shift.float()).to(x.dtype)
    if form == "repeated":
        shift, scale = (t.expand_as(x).contiguous() for t in (shift, scale))
    if form == "where":
        return torch.where(chosen(x), x * (1 + scale) + shift, x * (1 + 0.5 * scale) + shift)
    if form == "parts":
        half = max(1, x.shape[1] // 2)
        shifts, scales = (
            (t.expand_as(x)[:, :half], t.expand_as(x)[:, half:]) for t in (shift, scale)
        )
        parts = zip((x[:, :half], x[:, half:]), scales, shifts, strict=True)
        return torch.cat([part * (1 + s) + b for part, s, b in parts], 1)
    return x * (1 + scale) + shift


class Block(nn.Module):
    """A block of one stream.

    Args:
        spec: of the model.
        stream: ``video`` or ``joint``.
        mixing: kinds of the attentions within the video.
        number: of the block.
    """

    def __init__(self, spec: Spec, stream: str, mixing: tuple[str, ...], number: int) -> None:
        super().__init__()
        self.spec, self.stream, width = spec, stream, spec.channels
        self.shift = number % 2 if spec.mixing == "windows" else 0
        self.kinds = mixing if stream == "video" else ("joint",)
        self.has_cross = spec.cross and stream == "video"
        count = len(self.kinds) + 1
        self.modulation = Modulation(spec, count)
        self.attentions = nn.ModuleList(Attention(spec, True) for _ in self.kinds)
        self.outs = nn.ModuleList(nn.Linear(width, width) for _ in self.kinds)
        seen = {"full": "joint"} if spec.front == "history" else {}  # other tokens than the video's
        self.branches = nn.ModuleList(Branch(spec, seen.get(kind, kind)) for kind in self.kinds)
        self.mlp, self.mlp_branch = Mlp(spec), Branch(spec, "mlp")
        self.fused = nn.Linear(3 * width, width)
        self.hint = nn.Linear(width, width)
        self.hint_site = Site("", "always" if spec.hint == "timestep" else "prompt")
        if self.has_cross:
            self.cross, self.cross_branch = Attention(spec, False), Branch(spec, "cross")
            self.cross_out = nn.Linear(width, width)
            self.image = Attention(spec, False)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        """Of the stream."""
        joined = 0
        if self.stream == "joint":
            assert given.text is not None
            joined = given.text.shape[1]
        emb, shared = given.emb, given.shared
        if joined:
            emb, shared = given.for_text(emb, joined), given.for_text(shared, joined)
        modulated = self.modulation(emb, shared, x.shape)
        last = len(self.kinds) - 1
        for number in range(len(self.kinds)):
            is_beside = number == last and self.spec.beside != "after"
            add = self._with_mlp if is_beside else self._alone
            x = add(number, x, modulated, given)
        if self.has_cross:
            x = self.cross_branch([x], [(None, None, None)], lambda h: [self._cross(h[0], given)])[
                0
            ]
        control = None if given.control is None else F.pad(given.control, (0, 0, joined, 0))
        hints = {"timestep": emb, "prompt": given.pooled, "control": control}
        hint = hints.get(self.spec.hint)
        if hint is not None:
            added = self.hint_site(lambda: self.hint(hint))
            x = (x + (self.modulation.as_grid(added) if x.ndim == 5 else added)).to(x.dtype)
        if self.spec.beside == "after":
            x = self.mlp_branch([x], [modulated[-1]], lambda h: [self.mlp(h[0])])[0]
        return x

    def _alone(self, number: int, x: Tensor, modulated: list[Modulated], given: Given) -> Tensor:
        def compute(h: list[Tensor]) -> list[Tensor]:
            return [self.outs[number](self._mixed(number, h[0], given))]

        return self.branches[number]([x], [modulated[number]], compute)[0]

    def _with_mlp(self, number: int, x: Tensor, modulated: list[Modulated], given: Given) -> Tensor:
        branch, spec = self.branches[number], self.spec
        shift, scale, gate = modulated[number]
        of_mlp = modulated[-1][-1]

        def fused(h: list[Tensor]) -> list[Tensor]:
            mixed = branch.attention(lambda: self._mixed(number, h[0], given))
            return [self.fused(torch.cat([mixed, self.mlp.hidden(h[0])], -1))]

        def parallel(h: list[Tensor]) -> list[Tensor]:
            y = branch.attention(lambda: self.outs[number](self._mixed(number, h[0], given)))
            z = self.mlp(h[0])
            if gate is not None and of_mlp is not None:
                y, z = gate * y, of_mlp * z
            return [y + z]

        if spec.beside == "fused":
            return branch([x], [modulated[number]], fused, is_mixed=True)[0]
        return branch([x], [(shift, scale, None)], parallel, is_mixed=True)[0]

    def _mixed(self, number: int, h: Tensor, given: Given) -> Tensor:
        """Attention within the video, or of video and text."""
        spec, kind, attend = self.spec, self.kinds[number], self.attentions[number]
        shape, width = h.shape, spec.channels
        if kind == "joint":
            return attend(h, h, *joint_of(spec, given))
        if spec.num_front:
            return attend(h, h, None, None if spec.rotary == "none" else angles_of(given.positions))
        if spec.mixing == "windows":
            return self._in_windows(attend, h, given)
        grid = h.reshape(len(h), spec.frames, spec.height * spec.width, width)
        where = given.positions.view(spec.frames, spec.height * spec.width, -1)
        if kind == "spatial":
            rows, where = grid.flatten(0, 1), where[0]
        elif kind == "temporal":
            rows, where = grid.transpose(1, 2), where[:, 0]
            rows = rows.flatten(0, 1)
        else:
            rows, where = grid.flatten(1, 2), where.flatten(0, 1)
        angles = None if spec.rotary == "none" else angles_of(where)
        out = attend(rows, rows, None, angles)
        if kind == "temporal":
            out = out.unflatten(0, (len(h), -1)).transpose(1, 2)
        return out.reshape(shape)

    def _in_windows(self, attend: nn.Module, h: Tensor, given: Given) -> Tensor:
        """Attention within the upper and the lower half of every frame."""
        spec = self.spec
        grid = h.reshape(len(h), spec.frames, spec.height, spec.width, spec.channels)
        grid = grid.roll(self.shift, 2) if self.shift else grid
        rows = grid.reshape(len(h) * spec.frames * 2, -1, spec.channels)
        where = given.positions[: rows.shape[1]]
        angles = None if spec.rotary == "none" else angles_of(where)
        out = attend(rows, rows, None, angles).reshape(grid.shape)
        return (out.roll(-self.shift, 2) if self.shift else out).reshape(h.shape)

    def _cross(self, h: Tensor, given: Given) -> Tensor:
        assert given.text is not None
        rows = h.reshape(len(h), -1, h.shape[-1])
        out = self.cross(rows, given.text, given.mask)
        if given.image is not None:
            out = out + 0.7 * self.image(rows, given.image)
        return self.cross_out(out).reshape(h.shape)


def joint_of(spec: Spec, given: Given) -> tuple[Tensor | None, Tensor | None]:
    """Mask and angles of video and text in one sequence."""
    assert given.text is not None
    mask = given.mask
    if mask is not None:
        mask = F.pad(mask, (0, spec.num_front + spec.num_tokens), value=True)
    if spec.rotary == "none":
        return mask, None
    none = given.positions.new_zeros(given.text.shape[1], given.positions.shape[1])
    return mask, angles_of(torch.cat([none, given.positions]))
