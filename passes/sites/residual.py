"""Residual branches without a token mixer: the ``mlp`` sites.

A residual branch is computed from a value and added to it. In ``x + f(x)`` every latent-dependent
path into ``f(x)`` starts at ``x``. To distinguish parallel branches (``x + f(x) + g(x)``), the pass
looks through the chain of adds.

Two streams may share a branch, such as video and text whose tokens go through one MLP together. In
``x + f(x, y)[a:], y + f(x, y)[:a]`` every path starts at ``x`` or at ``y``, and both reach both
sums. The second stream may end there, as in the last block of a model that returns only the video.
Then only ``x + f(x, y)[a:]`` is left, and only ``f`` reads ``y``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.contractions import contraction
from pab_compile.passes.graph.walk import chain, positions

from .adds import readings, terms
from .binding import Binding

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_GATE_OPS = ("mul", "add")
_MAX_BRANCH_NODES = 200
_MAX_APART = 4  # distance, in sums, of the two sums of a shared branch


@dataclass(frozen=True, eq=False)
class Branch:
    """One residual branch.

    Attributes:
        ends: the value that is added, one per stream.
        nodes: all its latent-dependent nodes, from the ends backwards.
    """

    ends: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]

    @property
    def last_contraction(self) -> fx.Node:
        """The last matrix product of the branch: its output projection."""
        return next(n for n in self.nodes if _is_product(n))


def find_branches(graph: fx.Graph, mixer_nodes: frozenset[fx.Node]) -> tuple[Branch, ...]:
    """All residual branches with a contraction and without a token mixer, in graph order."""
    branches: dict[fx.Node, Branch] = {}
    left: list[fx.Node] = []
    for node in graph.nodes:
        if not (both := readings(node)):
            continue
        found = [_branch(end, stream) for stream, end in both]
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
    order = positions(graph)
    return tuple(sorted(branches.values(), key=lambda branch: order[branch.ends[-1]]))


def cut_of(branch: Branch, cut: str) -> tuple[fx.Node, ...]:
    """The tensors to cache: the branch's ends, or with ``attention`` those before the gate."""
    return tuple(_before_gate(end) if cut == "attention" else end for end in branch.ends)


def _before_gate(node: fx.Node) -> fx.Node:
    *_, last = chain(node, _gated)
    return last


def _gated(node: fx.Node) -> fx.Node | None:
    """What a per-step value scales or shifts in this op; None where the op is no gate."""
    inputs = node.all_input_nodes if ir.is_call(node, *_GATE_OPS) else []
    latent = [n for n in inputs if ir.binding(n) == Binding.LATENT]
    gates = [n for n in inputs if ir.binding(n) == Binding.STEP]
    return latent[0] if len(latent) == 1 and gates else None


def _is_mlp(branch: Branch, mixer_nodes: frozenset[fx.Node]) -> bool:
    return mixer_nodes.isdisjoint(branch.nodes) and any(map(_is_product, branch.nodes))


def _is_product(node: fx.Node) -> bool:
    return contraction(node) is not None or ir.is_call(node, *_CONVOLUTIONS)


def _branch(end: fx.Node, stream: fx.Node) -> Branch | None:
    """The nodes between a stream and what is added to it; None where a path avoids the stream."""
    stops = set(terms(stream))
    walked = _walk(end, stops)
    return Branch((end,), walked[0]) if walked is not None and walked[1] else None


def _shared_branch(one: fx.Node, other: fx.Node, mixer_nodes: frozenset[fx.Node]) -> Branch | None:
    """The branch that two sums add to their two streams."""
    found = []
    for (stream, end), (stream_2, end_2) in itertools.product(readings(one), readings(other)):
        stops, stops_2 = set(terms(stream)), set(terms(stream_2))
        if not stops.isdisjoint(stops_2):
            continue
        walks = [_walk(node, stops | stops_2) for node in (end, end_2)]
        if any(w is None or w[1].isdisjoint(stops) or w[1].isdisjoint(stops_2) for w in walks):
            continue
        first, second = (walk[0] for walk in walks if walk is not None)
        if end in second or end_2 in first:  # one feeds the other
            continue
        branch = Branch((end, end_2), tuple(dict.fromkeys((*first, *second))))
        if any(map(_is_product, set(first) & set(second))) and _is_mlp(branch, mixer_nodes):
            found.append(branch)
    return found[0] if len(found) == 1 else None


def _ending_branch(
    add: fx.Node, others: list[fx.Node], mixer_nodes: frozenset[fx.Node]
) -> Branch | None:
    """The branch that is added to one stream and alone reads another stream.

    Args:
        add: the addition.
        others: sums that may be the other stream.
        mixer_nodes: the nodes of all token mixers.
    """
    found = []
    for (stream, end), other in itertools.product(readings(add), others):
        stops = set(terms(stream))
        walk = _walk(end, {*stops, other}) if other not in stops else None
        if walk is None or other not in walk[1] or walk[1].isdisjoint(stops):
            continue
        branch = Branch((end,), walk[0])
        if set(other.users) <= set(branch.nodes) and _is_mlp(branch, mixer_nodes):
            found.append(branch)
    return found[0] if len(found) == 1 else None


def _walk(end: fx.Node, stops: set[fx.Node]) -> tuple[tuple[fx.Node, ...], set[fx.Node]] | None:
    """The latent-dependent nodes that feed one, up to some stops, and the stops that were met."""
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
