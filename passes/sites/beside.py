"""What runs beside a mixer: values that join its output before the residual add.

In these branches the whole addend is what a step adds to the stream, not the attention alone::

    x + gate * proj(cat([attention(h), gelu(m)]))     h and m are computed from x
    x + gate * (attention(h) + mlp(h))

Such a branch is one region if three things hold, which ``why_not`` checks:

- all that reads it from outside adds it to a stream;
- what runs beside the mixer is computed from these streams, or from a stream that ends in it;
- nothing in it has an effect.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence

from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.flops import node_flops
from pab_compile.passes.graph.ops import CASTS, COPIES, PARTS, VIEWS
from pab_compile.passes.graph.origin import source_line
from pab_compile.passes.graph.walk import operands

from .adds import stream_of, terms
from .binding import Binding
from .growth import Growth, latent_inputs

_MAX_NODES = 200
_SCALED = VIEWS | PARTS | COPIES | CASTS | {"mul", "div"}


class Streams(Container[fx.Node]):
    """Where the streams of a region may come from: what its mixers read.

    A stream that was scaled, cast or viewed counts too, as in ``0.7 * x + f(x)``.

    Args:
        read: per mixer, all that it is computed from.
        inside: the nodes of all regions. None of them is a stream.
    """

    def __init__(self, read: Sequence[Container[fx.Node]], inside: Container[fx.Node]) -> None:
        self._read = read
        self._inside = inside

    def is_read(self, node: fx.Node) -> bool:
        """Whether a mixer is computed from the node."""
        return any(node in read for read in self._read)

    def base(self, node: fx.Node) -> fx.Node | None:
        """What a mixer reads, looked through what scales, casts or views it."""
        while not self.is_read(node):
            sources = latent_inputs(node)
            if node in self._inside or len(sources) != 1 or not ir.is_call(node, *_SCALED):
                return None
            node = sources[0]
        return node

    def __contains__(self, node: object) -> bool:
        return isinstance(node, fx.Node) and self.base(node) is not None

    def of(self, node: fx.Node) -> list[fx.Node]:
        """The stream that a node adds to, with the values that were added up to it."""
        stream = stream_of(node, self)
        is_shift = stream is not None and ir.binding(stream) != Binding.LATENT
        if stream is None or (is_shift and ir.shape(stream) != ir.shape(node)):
            return []
        base = self.base(stream)
        return [*terms(stream), *(terms(base) if base is not None else ())]


def may_join(node: fx.Node) -> bool:
    """Whether a region may take in an op of several values. A product of two mixes tokens."""
    return not node_flops(node) or len(latent_inputs(node)) < 2


def cone(start: fx.Node, streams: Streams) -> tuple[fx.Node, ...] | None:
    """The nodes between what mixers read and a value that joins them; None if there are many."""
    found = [] if streams.is_read(start) else [start]
    for node in found:  # grows while it is read
        if node.op != "call_function" or len(found) > _MAX_NODES:
            return None
        found += [n for n in latent_inputs(node) if not streams.is_read(n) and n not in found]
    return tuple(found)


def why_not(
    region: Growth, mixer_nodes: Container[fx.Node], streams: Streams, added: Container[fx.Node]
) -> str:
    """Why a region with what runs beside it is no whole residual branch; ``""`` if it is one.

    Args:
        region: the region.
        mixer_nodes: the nodes of all mixers. Its own may read what they like.
        streams: where its streams may come from.
        added: what all regions add to their streams.
    """
    inside = region.inside
    effects = [node for node in (*region.nodes, *region.beside) if ir.has_effect(node)]
    if effects:
        return f"it holds {_said(effects[0])}"
    stops: set[fx.Node] = set()
    for end in region.frontier:
        for user in list(end.users):
            if user in inside:
                continue
            found = streams.of(user)
            if not found:
                return f"{_said(user)} reads a value of it, and does not add it to a stream"
            stops.update(found)
    own = [node for node in region.nodes if node not in mixer_nodes]
    read = [n for n in operands([*own, *region.beside]) if ir.binding(n) == Binding.LATENT]
    pending = [n for n in read if n not in inside]
    for node in pending:  # grows while it is read
        if node in stops or _ends_in(node, region.frontier, added):
            continue
        if node.op != "call_function" or node in mixer_nodes or len(pending) > _MAX_NODES:
            return "what runs beside it reads a stream that the branch is not added to"
        pending += [n for n in latent_inputs(node) if n not in pending]
    return ""


def _ends_in(stream: fx.Node, ends: Collection[fx.Node], added: Container[fx.Node]) -> bool:
    """Whether a node is a stream, and all that is computed from it goes into some ends."""
    if not any(term in added for term in list(terms(stream))[1:]):
        return False
    pending = [stream]
    for node in pending:  # grows while it is read
        if node.op == "output" or ir.has_effect(node) or len(pending) > _MAX_NODES:
            return False
        if node not in ends:
            pending += [user for user in node.users if user not in pending]
    return True


def _said(node: fx.Node) -> str:
    line = source_line(node)
    name = ir.op_name(node) if node.op == "call_function" else node.op
    return f"{name} ({line})" if line else name
