"""Residual branches without a token mixer: the ``mlp`` sites.

A residual branch is computed from a value and added to it. In ``x + f(x)`` every latent-dependent
path into ``f(x)`` starts at ``x``. To distinguish parallel branches (``x + f(x) + g(x)``), the pass
looks through the chain of adds.

Two streams may share a branch, such as video and text whose tokens go through one MLP together. In
``x + f(x, y)[a:], y + f(x, y)[:a]`` every path starts at ``x`` or at ``y``, and both reach both
sums. The second stream may end there, as in the last block of a model that returns only the video.
Then only ``x + f(x, y)[a:]`` is left, and only ``f`` reads ``y``.

A branch may be added to the parts of its stream one by one, such as frames that are given and
frames that are denoised: ``cat([x[:a] + g * f(x)[:a], x[a:] + h * f(x)[a:]])``.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Set
from dataclasses import dataclass

from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.contractions import contraction
from pab_compile.passes.graph.kept import is_kept
from pab_compile.passes.graph.walk import feeding, positions, reached

from .adds import (
    Addition,
    constant_factor,
    is_choice,
    origin,
    part_of,
    parts,
    readings,
    same,
    terms,
    to_cache,
)
from .binding import Binding
from .growth import latent_inputs

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_GATE_OPS = ("mul", "div", "add", "sub")
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
    walks = _Walks(graph)
    branches: dict[fx.Node, Branch] = {}
    left: list[fx.Node] = []
    for node in graph.nodes:
        if not (both := walks.readings(node)):
            continue
        found = [_branch(end, stream, walks) for stream, end in both]
        found = [b for b in found if b is not None and _is_mlp(b, mixer_nodes)]
        if len(found) == 1:
            branches.setdefault(found[0].ends[0], found[0])
        else:
            left.append(node)
    shared: set[fx.Node] = set()
    for index, one in enumerate(left):
        found = [
            _shared_branch(one, other, mixer_nodes, walks)
            for other in left[index + 1 : index + 1 + _MAX_APART]
        ]
        before = left[max(0, index - _MAX_APART) : index]
        found.append(_ending_branch(one, before, mixer_nodes, walks))
        for branch in found:
            if branch is not None and shared.isdisjoint(branch.ends):
                shared.update(branch.ends)
                branches[branch.ends[-1]] = branch
    order = positions(graph)
    return tuple(sorted(_joined(branches.values()), key=lambda branch: order[branch.ends[-1]]))


def _joined(branches: Iterable[Branch]) -> list[Branch]:
    """Branches with one value before all their gates are one: ``where(mask, x + a*y, x + b*y)``.

    The gates may scale parts of this value.
    """
    found: dict[tuple[fx.Node, ...], list[Branch]] = {}
    for branch in branches:
        inside = set(branch.nodes)
        found.setdefault(tuple(_root(end, inside) for end in branch.ends), []).append(branch)
    return [
        Branch(
            tuple(dict.fromkeys(end for branch in alike for end in branch.ends)),
            tuple(dict.fromkeys(node for branch in alike for node in branch.nodes)),
        )
        for alike in found.values()
    ]


def cut_of(branch: Branch, cut: str) -> tuple[fx.Node, ...]:
    """The tensors to cache: the branch's ends, or with ``attention`` those before the gate.

    Casts to a larger type stay outside. Of ends with one value before their gates, it is cached.
    """
    inside = set(branch.nodes)
    before = dict.fromkeys(to_cache(_before_gate(end, inside), inside) for end in branch.ends)
    if cut == "attention" or len(before) < len(branch.ends):
        return tuple(before)
    return tuple(to_cache(end, inside) for end in branch.ends)


def _before_gate(end: fx.Node, inside: Container[fx.Node]) -> fx.Node:
    """The value before the last gates of a branch, which may be cast or viewed between them."""
    found = node = end
    while True:
        gated = _gated(node) or _chosen(node, inside) or constant_factor(node)
        source = gated or same(node)
        if source is None or source not in inside:
            return found
        node = source
        found = node if gated is not None else found


def _root(end: fx.Node, inside: Container[fx.Node]) -> fx.Node:
    """The value before all that scales or shifts what a branch adds, or takes a part of it."""
    found = _before_gate(end, inside)
    while True:
        source = part_of(found) or same(found) or _shifted(found)
        if source is None or source not in inside:
            return found
        found = _before_gate(source, inside)


def _shifted(node: fx.Node) -> fx.Node | None:
    """What a value without the latents scales or shifts in this op; None for other ops."""
    latent = latent_inputs(node) if ir.is_call(node, *_GATE_OPS) else []
    return latent[0] if len(latent) == 1 else None


def _gated(node: fx.Node) -> fx.Node | None:
    """What a per-step value scales or shifts in this op; None where the op is no gate."""
    gates = [n for n in node.all_input_nodes if ir.binding(n) == Binding.STEP]
    return _shifted(node) if gates else None


def _chosen(node: fx.Node, inside: Container[fx.Node]) -> fx.Node | None:
    """The value before the gates between which a mask chooses; None if there is no such value."""
    latent = [n for n in parts(node) if ir.binding(n) == Binding.LATENT] if is_choice(node) else []
    before = dict.fromkeys(_before_gate(n, inside) for n in latent)
    is_gate = ir.binding(node.all_input_nodes[0]) == Binding.STEP or before.keys() != set(latent)
    return next(iter(before)) if len(before) == 1 and is_gate else None


def _is_mlp(branch: Branch, mixer_nodes: frozenset[fx.Node]) -> bool:
    return mixer_nodes.isdisjoint(branch.nodes) and any(map(_is_product, branch.nodes))


def _is_product(node: fx.Node) -> bool:
    is_known = contraction(node) is not None or ir.is_call(node, *_CONVOLUTIONS)
    return is_known or is_kept(node)


def _branch(end: fx.Node, stream: fx.Node, walks: _Walks) -> Branch | None:
    """The nodes between a stream and what is added to it; None where a path avoids the stream."""
    whole = part_of(origin(stream))
    stops = walks.terms(stream)
    if whole is not None:
        stops |= walks.terms(whole)
    if not stops.isdisjoint(walks.terms(end)):  # the stream itself is added, and something to it
        return None
    walked = walks.walk(end, stops)
    return Branch((end,), walked[0]) if walked is not None and walked[1] else None


def _shared_branch(
    one: fx.Node, other: fx.Node, mixer_nodes: frozenset[fx.Node], walks: _Walks
) -> Branch | None:
    """The branch that two sums add to their two streams."""
    found = []
    for (stream, end), (stream_2, end_2) in itertools.product(
        walks.readings(one), walks.readings(other)
    ):
        stops, stops_2 = walks.terms(stream), walks.terms(stream_2)
        if not stops.isdisjoint(stops_2):
            continue
        both = [walks.walk(node, stops | stops_2) for node in (end, end_2)]
        if any(w is None or w[1].isdisjoint(stops) or w[1].isdisjoint(stops_2) for w in both):
            continue
        first, second = (walked[0] for walked in both if walked is not None)
        if end in second or end_2 in first:  # one feeds the other
            continue
        branch = Branch((end, end_2), tuple(dict.fromkeys((*first, *second))))
        if any(map(_is_product, set(first) & set(second))) and _is_mlp(branch, mixer_nodes):
            found.append(branch)
    return found[0] if len(found) == 1 else None


def _ending_branch(
    add: fx.Node, others: list[fx.Node], mixer_nodes: frozenset[fx.Node], walks: _Walks
) -> Branch | None:
    """The branch that is added to one stream and alone reads another stream.

    A sum that is computed from the stream is no other stream. It may lie inside of a network whose
    whole output is added to the latents.

    Args:
        add: the addition.
        others: sums that may be the other stream.
        mixer_nodes: the nodes of all token mixers.
        walks: the walks of this graph.
    """
    found = []
    for (stream, end), other in itertools.product(walks.readings(add), others):
        stops = walks.terms(stream)
        walked = walks.walk(end, {*stops, other}) if other not in stops else None
        if walked is None or other not in walked[1] or walked[1].isdisjoint(stops):
            continue
        branch = Branch((end,), walked[0])
        if not _readers(other) <= set(branch.nodes) or not _is_mlp(branch, mixer_nodes):
            continue
        if origin(stream) not in feeding([other]):
            found.append(branch)
    return found[0] if len(found) == 1 else None


def _readers(node: fx.Node) -> set[fx.Node]:
    """All that reads a value, or what is cast, viewed or copied from it."""

    def copies(node: fx.Node) -> list[fx.Node]:
        return [user for user in node.users if same(user) is node]

    alike = {node, *reached([node], copies)}
    return {user for n in alike for user in n.users if user not in alike}


class _Walks:
    """Walks from ends to streams. What is found of a node is found once for all of them."""

    def __init__(self, graph: fx.Graph) -> None:
        self._order = positions(graph)
        self._sources: dict[fx.Node, tuple[tuple[fx.Node, fx.Node], ...]] = {}
        self._readings: dict[fx.Node, tuple[Addition, ...]] = {}
        self._terms: dict[fx.Node, frozenset[fx.Node]] = {}

    def readings(self, node: fx.Node) -> tuple[Addition, ...]:
        """The readings of a sum (``adds.readings``)."""
        if node not in self._readings:
            self._readings[node] = readings(node)
        return self._readings[node]

    def terms(self, node: fx.Node) -> frozenset[fx.Node]:
        """What was added up to a value (``adds.terms``)."""
        if node not in self._terms:
            self._terms[node] = frozenset(terms(node))
        return self._terms[node]

    def walk(
        self, end: fx.Node, stops: Set[fx.Node]
    ) -> tuple[tuple[fx.Node, ...], set[fx.Node]] | None:
        """The latent-dependent nodes that feed one, up to some stops, and the stops that were met.

        A stop may be cast, viewed or copied before it is read.
        """
        if origin(end) in stops:
            return None
        first = min(map(self._order.__getitem__, stops))
        nodes = [end]
        seen = {end}
        met: set[fx.Node] = set()
        for node in nodes:  # grows while it is read: breadth first towards the trunk
            for source, stop in self._read_by(node):
                if source in seen:
                    continue
                if stop in stops:
                    met.add(stop)
                    continue
                if source.op != "call_function" or self._order[source] < first:
                    return None  # what comes before all stops reads none of them
                seen.add(source)
                nodes.append(source)
        return tuple(nodes), met

    def _read_by(self, node: fx.Node) -> tuple[tuple[fx.Node, fx.Node], ...]:
        """The latent-dependent values that a node reads, each with its origin."""
        if node not in self._sources:
            latent = (n for n in node.all_input_nodes if ir.binding(n) == Binding.LATENT)
            self._sources[node] = tuple((source, origin(source)) for source in latent)
        return self._sources[node]
