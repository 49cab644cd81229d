"""What grows from mixers: the nodes of a region, what runs beside them, and where it ends."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from pab_compile.passes.graph import ir

from .adds import parts
from .binding import Binding


def latent_inputs(node: fx.Node) -> list[fx.Node]:
    """The operands of a node that depend on the latents."""
    return [n for n in node.all_input_nodes if ir.binding(n) == Binding.LATENT]


@dataclass(frozen=True, eq=False)
class Growth:
    """What grew from one or several merged mixers.

    Attributes:
        mixers: their indices.
        nodes: what grew from them, in graph order.
        frontier: the nodes that are read outside, also of those beside.
        beside: what joins the nodes from beside the mixers, in graph order.
        is_branch: whether this is a whole residual branch, whose frontier is added to its streams.
        refused: why it is none although that was asked for; ``""`` if there is nothing to say.
    """

    mixers: tuple[int, ...]
    nodes: tuple[fx.Node, ...]
    frontier: tuple[fx.Node, ...]
    beside: tuple[fx.Node, ...] = ()
    is_branch: bool = False
    refused: str = ""

    @property
    def inside(self) -> frozenset[fx.Node]:
        """All its nodes."""
        return frozenset((*self.nodes, *self.beside))

    @property
    def holds_more(self) -> bool:
        """Whether something joins from beside the mixers, or its stream inside of the branch."""
        inside = self.inside
        joined = (n for node in self.nodes for n in parts(node) if n not in inside)
        return bool(self.beside) or any(ir.binding(n) == Binding.LATENT for n in joined)

    @property
    def alone(self) -> tuple[fx.Node, ...]:
        """Those of its nodes that nothing has joined, in graph order."""
        nodes, found = set(self.nodes), dict[fx.Node, None]()
        for node in self.nodes:
            sources = latent_inputs(node)
            if nodes.isdisjoint(sources) or all(n in found for n in sources):
                found[node] = None
        return tuple(found)
