"""Residual branches without a token mixer: the ``mlp`` sites.

A residual branch is what an ``add`` brings back to a value it was computed from: in ``x + f(x)``
every latent-dependent path into ``f(x)`` starts at ``x``. Parallel branches
(``x + f(x) + g(x)``) are told apart by looking through the chain of adds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from . import ir
from .binding import Binding
from .contractions import contraction

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_GATE_OPS = ("mul", "add")
_MAX_BRANCH_NODES = 200


@dataclass(frozen=True, eq=False)
class Branch:
    """One residual branch: its last node before the add, and all its latent-dependent nodes."""

    end: fx.Node
    nodes: tuple[fx.Node, ...]

    @property
    def last_contraction(self) -> fx.Node:
        """The last matrix product of the branch: its output projection."""
        return next(n for n in self.nodes if _is_product(n))


def find_branches(graph: fx.Graph, mixer_nodes: frozenset[fx.Node]) -> tuple[Branch, ...]:
    """All residual branches that hold a contraction and no token mixer, in graph order."""
    branches: dict[fx.Node, Branch] = {}
    for node in graph.nodes:
        if not ir.is_call(node, "add") or ir.binding(node) != Binding.LATENT:
            continue
        operands = [n for n in node.all_input_nodes if ir.binding(n) == Binding.LATENT]
        if len(operands) != 2:
            continue
        found = [_branch(end, trunk) for trunk, end in (operands, operands[::-1])]
        found = [b for b in found if b is not None and _is_mlp(b, mixer_nodes)]
        if len(found) == 1 and found[0].end not in branches:
            branches[found[0].end] = found[0]
    return tuple(branches.values())


def cut_of(branch: Branch, cut: str) -> fx.Node:
    """The tensor to cache: the branch's end, or with ``attention`` its value before the gate."""
    node = branch.end
    while cut == "attention" and ir.is_call(node, *_GATE_OPS):
        inputs = node.all_input_nodes
        latent = [n for n in inputs if ir.binding(n) == Binding.LATENT]
        gates = [n for n in inputs if ir.binding(n) == Binding.STEP]
        if len(latent) != 1 or not gates:
            break
        node = latent[0]
    return node


def _is_mlp(branch: Branch, mixer_nodes: frozenset[fx.Node]) -> bool:
    return mixer_nodes.isdisjoint(branch.nodes) and any(map(_is_product, branch.nodes))


def _is_product(node: fx.Node) -> bool:
    return contraction(node) is not None or ir.is_call(node, *_CONVOLUTIONS)


def _branch(end: fx.Node, trunk: fx.Node) -> Branch | None:
    """The nodes between a trunk and an operand of its add, or None when the trunk is passed by."""
    stops = set(_terms(trunk))
    if end in stops:
        return None
    nodes = [end]
    seen = {end}
    met_trunk = False
    for node in nodes:  # grows while it is read: breadth first towards the trunk
        for source in node.all_input_nodes:
            if ir.binding(source) != Binding.LATENT or source in seen:
                continue
            if source in stops:
                met_trunk = True
                continue
            if source.op != "call_function" or len(nodes) >= _MAX_BRANCH_NODES:
                return None
            seen.add(source)
            nodes.append(source)
    return Branch(end, tuple(nodes)) if met_trunk else None


def _terms(node: fx.Node, depth: int = 3) -> Iterator[fx.Node]:
    """A value and, where it is a sum, the terms it was added up from."""
    yield node
    if depth and ir.is_call(node, "add"):
        for operand in node.all_input_nodes:
            yield from _terms(operand, depth - 1)
