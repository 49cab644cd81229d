"""Token mixers and their kinds, by the axes that queries and keys run along.

===========  ==========================================  ==================
kind         queries run along                           keys run along
===========  ==========================================  ==================
``spatial``  ``h`` and/or ``w``, no ``t``                the same
``temporal`` ``t`` only                                  the same
``full``     ``t`` with ``h``/``w``, or packed ``s``     the same
``joint``    video, or video and text                    video and text
``cross``    video, or video and text                    other sources only, or tokens without a
                                                         name that do not depend on the latents
``text``     text                                        text
``other``    anything else
===========  ==========================================  ==================

"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import fx

from pab_compile.passes.axes.names import BATCH, CHANNEL, TEXT, VIDEO
from pab_compile.passes.axes.table import AxisTable
from pab_compile.passes.graph.origin import source_line


@dataclass(frozen=True)
class Mixer:
    """An attention: ops that move information between tokens.

    Attributes:
        nodes: The ops that make the mixer, in graph order; the last is its output.
        kind: ``spatial``, ``temporal``, ``full``, ``joint``, ``cross``, ``text`` or ``other``.
        mechanism: ``sdpa``, ``softmax`` (written out by hand), ``linear`` (no softmax) or
            ``opaque`` (an op that is not known).
        query_axes: Axes that the queries run along, batch and channels left out.
        key_axes: Axes that the keys run along.
        reason: The evidence for the kind, in English.
    """

    nodes: tuple[fx.Node, ...]
    kind: str
    mechanism: str
    query_axes: tuple[str, ...]
    key_axes: tuple[str, ...]
    reason: str


class Side(NamedTuple):
    """The dimensions of one tensor along which the queries or the keys of an attention run."""

    node: fx.Node
    dims: Sequence[int]


@dataclass(frozen=True, eq=False)
class Describer:
    """Finds out which axes a mixer mixes and which kind it is, and says why.

    Attributes:
        axes: axes of every tensor.
        latent: the nodes that depend on the latents.
    """

    axes: AxisTable
    latent: Collection[fx.Node]

    def tokens(self, side: Side) -> tuple[str, ...]:
        """The axes among some dimensions that attention can mix."""
        roles = [role for dim in side.dims for role in self.axes.roles(side.node, dim)]
        return tuple(dict.fromkeys(role for role in roles if role not in (BATCH, CHANNEL)))

    def all_tokens(self, node: fx.Node) -> tuple[str, ...]:
        """The axes of a tensor that attention can mix."""
        return self.tokens(Side(node, range(len(self.axes.dims(node)))))

    def mixer(
        self,
        nodes: Sequence[fx.Node],
        mechanism: str,
        query: Side,
        key: Side,
        keys: fx.Node | None = None,
    ) -> Mixer:
        """A mixer of a known form.

        Args:
            nodes: its ops in graph order.
            mechanism: ``sdpa``, ``softmax`` or ``linear``.
            query: where the queries run.
            key: where the keys run.
            keys: the tensor of the keys, where that is not the one of ``key``.
        """
        query_axes, key_axes = self.tokens(query), self.tokens(key)
        kind = kind_of(query_axes, key_axes)
        if not key_axes and set(query_axes) & VIDEO and (keys or key.node) not in self.latent:
            kind = "cross"  # for example learned queries that looked at a prompt
        reason = _reason(kind, mechanism, self._print(query), self._print(key))
        if self.axes.frame_major and kind in ("spatial", "temporal"):
            reason += "; the packed tokens are taken as frame-major"
        where = source_line(nodes[-1]) or source_line(nodes[0])
        reason += f" ({where})" if where else ""
        return Mixer(tuple(nodes), kind, mechanism, query_axes, key_axes, reason)

    def opaque(self, nodes: Sequence[fx.Node], query: fx.Node, key: fx.Node) -> Mixer:
        """An op that is not known, which joins two tensors of tokens."""
        where = source_line(nodes[0])
        reason = f"unknown op {nodes[0].target}: which tokens it mixes is not known"
        reason += f" ({where})" if where else ""
        axes = self.all_tokens(query), self.all_tokens(key)
        return Mixer(tuple(nodes), "other", "opaque", *axes, reason)

    def _print(self, side: Side) -> str:
        names = self.axes.names(side.node)
        named = [names[dim] for dim in side.dims if names[dim] not in ("1", "c")]
        if not any(self.tokens(side)):
            return f"{'*'.join(named) or 'no'} tokens without a name"
        return "*".join(named)


def kind_of(query: Iterable[str], key: Iterable[str]) -> str:
    """Kind of an attention by the axes of its queries and keys (batch and channels left out)."""
    q, k = frozenset(query), frozenset(key)
    q_video, k_video = q & VIDEO, k & VIDEO
    if not q_video:
        return "text" if q == k == {TEXT} else "other"
    if not k_video:
        return "cross" if k else "other"
    if k - VIDEO:
        return "joint" if q - VIDEO <= k - VIDEO else "other"
    if q != k:
        return "other"
    if q == {"t"}:
        return "temporal"
    return "spatial" if q <= {"h", "w"} else "full"


def _reason(kind: str, mechanism: str, query: str, key: str) -> str:
    how = {"sdpa": "", "softmax": "softmax by hand: ", "linear": "linear attention: "}[mechanism]
    if kind == "cross":
        return f"{how}queries run along {query}, keys along another source, {key}"
    if kind == "joint":
        return f"{how}video and other tokens in one: queries along {query}, keys along {key}"
    if kind == "other":
        return f"{how}queries run along {query}, keys along {key}: no kind fits"
    return f"{how}queries and keys both run along {query}"
