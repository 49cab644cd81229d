"""Sites: the places of a model whose output may be reused at later steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from pab_compile.passes.graph import ir

ATTENTION_KINDS: tuple[str, ...] = (
    "spatial",
    "temporal",
    "cross",
    "full",
    "joint",
    "text",
    "other",
)
OUTPUT = "output"
KINDS: tuple[str, ...] = (*ATTENTION_KINDS, "mlp", OUTPUT)
CUTS = ("attention", "gated", "branch", OUTPUT)


@dataclass(frozen=True, eq=False)
class Start:
    """Where a stretch starts. The difference between its end and its start is cached.

    Attributes:
        node: the value at the start.
        dtype: type of the cached difference.
    """

    node: fx.Node
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Site:
    """One attention, one residual branch without attention, or the whole output of a graph.

    Attributes:
        name: unique within the graph; the module path where it is known.
        kind: one of ``KINDS``.
        mechanism: ``sdpa``, ``softmax``, ``linear``, ``opaque``, ``mlp`` or ``output``.
        module: path of the module that runs it, ``""`` when none is known.
        query_axes: named axes of the query sequence (of the tokens, for ``mlp``).
        key_axes: named axes of the key sequence.
        cut: the nodes to cache; empty when the site cannot be broadcast.
        region: the nodes that need not run when the cut is loaded, in graph order, with the cut.
        cache_bytes: size of the cut in bytes for one output.
        flops: floating point operations of the region (two per multiply-add).
        reason: evidence for the kind. If the site cannot be broadcast, it also says why.
        branch: what its residual branch holds beside the mixer, or why the branch is not one site;
            ``""`` if there is nothing to say.
        parts: the sites that cache one sum together, itself the first; empty for a single site
            (``passes.rewrite.coalesce``).
        ends: what the site hands on. The cut lies before these nodes, or is these nodes.
        starts: the nodes of the cut that are ends of stretches, each with its start.
        other_kinds: the kinds of its attentions besides ``kind``, where a whole branch holds
            several. The site is reused only where the plan would reuse all of them.
    """

    name: str
    kind: str
    mechanism: str
    module: str
    query_axes: tuple[str, ...]
    key_axes: tuple[str, ...]
    cut: tuple[fx.Node, ...]
    region: tuple[fx.Node, ...]
    cache_bytes: int
    flops: int
    reason: str
    branch: str = ""
    parts: tuple[Site, ...] = ()
    ends: tuple[fx.Node, ...] = ()
    starts: Mapping[fx.Node, Start] = field(default_factory=dict)
    other_kinds: tuple[str, ...] = ()

    @property
    def can_broadcast(self) -> bool:
        """Whether the site has a cut."""
        return bool(self.cut)

    @property
    def kinds(self) -> tuple[str, ...]:
        """All its kinds, the first of which is its own."""
        return (self.kind, *self.other_kinds)

    @property
    def singles(self) -> tuple[Site, ...]:
        """The sites that this one consists of."""
        return self.parts or (self,)

    @property
    def kept(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Sizes and dtype of every tensor that is cached of one output. Of a stretch: of a sum."""
        found = []
        for node in self.cut:
            whole = ir.example(node)
            for tensor in ir.tensors(node) or [t for t in [whole] if isinstance(t, torch.Tensor)]:
                start = self.starts.get(node)
                shape = tuple(int(size) for size in tensor.shape)
                found.append((shape, tensor.dtype if start is None else start.dtype))
        return found
