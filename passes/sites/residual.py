"""Residual branches without a token mixer: the ``mlp`` sites.

A residual branch is what an ``add`` brings back to a value it was computed from: in ``x + f(x)``
every latent-dependent path into ``f(x)`` starts at ``x``. Parallel branches
(``x + f(x) + g(x)``) are told apart by looking through the chain of adds.

Two streams may share a branch, as video and text do whose tokens go through one MLP together: in
``x + f(x, y)[a:], y + f(x, y)[:a]`` every path starts at ``x`` or at ``y``, and both reach both.
Where the second stream ends, as in the last block of a model that returns the video only, what is
left of this is ``x + f(x, y)[a:]``, and nothing but ``f`` reads ``y``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.contractions import contraction

from .binding import Binding

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_GATE_OPS = ("mul", "add")
_MAX_BRANCH_NODES = 200
_MAX_APART = 4  # sums between the two that a shared branch is added to


@dataclass(frozen=True, eq=False)
class Branch:
    """One residual branch: its last nodes before the adds, and all its latent-dependent nodes.

    Attributes:
        ends: one node per stream that it is added to.
        nodes: from the ends backwards.
    """

    ends: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]

    @property
    def last_contraction(self) -> fx.Node:
        """The last matrix product of the branch: its output projection."""
        return next(n for n in self.nodes if _is_product(n))


def find_branches(graph: fx.Graph, mixer_nodes: frozenset[fx.Node]) -> tuple[Branch, ...]:
    """All residual branches that hold a contraction and no token mixer, in graph order."""
    branches: dict[fx.Node, Branch] = {}
    left: list[fx.Node] = []
    for node in graph.nodes:
        if not ir.is_call(node, "add") or ir.binding(node) != Binding.LATENT:
            continue
        if len(_operands(node)) != 2:
            continue
        found = [_branch(end, trunk) for trunk, end in _both_ways(node)]
        found = [b for b in found if b is not None and _is_mlp(b, mixer_nodes)]
        if len(found) == 1:
            branches.setdefault(found[0].ends[0], found[0])
        else:
            left.append(node)
    shared: set[fx.Node] = set()
    for index, one in enumerate(left):
        found = [
            _shared_branch(one, other, mixer_nodes)
            for other in left[index + 1 : index + 1 + _MAX_APART]
        ]
        found.append(_ending_branch(one, left[max(0, index - _MAX_APART) : index], mixer_nodes))
        for branch in found:
            if branch is not None and shared.isdisjoint(branch.ends):
                shared.update(branch.ends)
                branches[branch.ends[-1]] = branch
    order = {node: index for index, node in enumerate(graph.nodes)}
    return tuple(sorted(branches.values(), key=lambda branch: order[branch.ends[-1]]))


def cut_of(branch: Branch, cut: str) -> tuple[fx.Node, ...]:
    """The tensors to cache: the branch's ends, or with ``attention`` those before the gate."""
    return tuple(_before_gate(end) if cut == "attention" else end for end in branch.ends)


def _before_gate(node: fx.Node) -> fx.Node:
    while ir.is_call(node, *_GATE_OPS):
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
    walked = _walk(end, stops)
    return Branch((end,), walked[0]) if walked is not None and walked[1] else None


def _operands(add: fx.Node) -> list[fx.Node]:
    return [n for n in add.all_input_nodes if ir.binding(n) == Binding.LATENT]


def _both_ways(add: fx.Node) -> tuple[tuple[fx.Node, fx.Node], tuple[fx.Node, fx.Node]]:
    """Its operands as trunk and end of a branch, and the other way round."""
    one, other = _operands(add)
    return (one, other), (other, one)


def _shared_branch(one: fx.Node, other: fx.Node, mixer_nodes: frozenset[fx.Node]) -> Branch | None:
    """The branch that is added to two streams, from the adds."""
    found = []
    for (trunk, end), (trunk_2, end_2) in itertools.product(_both_ways(one), _both_ways(other)):
        terms, terms_2 = set(_terms(trunk)), set(_terms(trunk_2))
        if not terms.isdisjoint(terms_2):
            continue
        walks = [_walk(node, terms | terms_2) for node in (end, end_2)]
        if any(w is None or w[1].isdisjoint(terms) or w[1].isdisjoint(terms_2) for w in walks):
            continue
        first, second = (walk[0] for walk in walks if walk is not None)
        if end in second or end_2 in first:  # one behind the other
            continue
        branch = Branch((end, end_2), tuple(dict.fromkeys((*first, *second))))
        if any(map(_is_product, set(first) & set(second))) and _is_mlp(branch, mixer_nodes):
            found.append(branch)
    return found[0] if len(found) == 1 else None


def _ending_branch(
    add: fx.Node, streams: list[fx.Node], mixer_nodes: frozenset[fx.Node]
) -> Branch | None:
    """The branch that is added to one stream and is all that reads another, one of some sums."""
    found = []
    for (trunk, end), stream in itertools.product(_both_ways(add), streams):
        terms = set(_terms(trunk))
        walk = _walk(end, {*terms, stream}) if stream not in terms else None
        if walk is None or stream not in walk[1] or walk[1].isdisjoint(terms):
            continue
        branch = Branch((end,), walk[0])
        if set(stream.users) <= set(branch.nodes) and _is_mlp(branch, mixer_nodes):
            found.append(branch)
    return found[0] if len(found) == 1 else None


def _walk(end: fx.Node, stops: set[fx.Node]) -> tuple[tuple[fx.Node, ...], set[fx.Node]] | None:
    """The latent-dependent nodes behind one, up to some others, and which of these were met."""
    if end in stops:
        return None
    nodes = [end]
    seen = {end}
    met: set[fx.Node] = set()
    for node in nodes:  # grows while it is read: breadth first towards the trunk
        for source in node.all_input_nodes:
            if ir.binding(source) != Binding.LATENT or source in seen:
                continue
            if source in stops:
                met.add(source)
                continue
            if source.op != "call_function" or len(nodes) >= _MAX_BRANCH_NODES:
                return None
            seen.add(source)
            nodes.append(source)
    return tuple(nodes), met


def _terms(node: fx.Node, depth: int = 3) -> Iterator[fx.Node]:
    """A value and, where it is a sum, the terms it was added up from."""
    yield node
    if depth and ir.is_call(node, "add"):
        for operand in node.all_input_nodes:
            yield from _terms(operand, depth - 1)
