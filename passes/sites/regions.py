"""Regions: which nodes need not run when a site is reused, and which tensors to cache.

A region grows forward from a token mixer, along nodes that depend on the latents. A node joins when
all its latent-dependent inputs are in the region. The region ends before

- another token mixer, or the residual add (without one, it ends where the graph ends);
- an op that reads a value from elsewhere. A factor is allowed if it is computed from what the mixer
  reads, and only this product uses it: the attention's own gate, a normaliser of linear attention;
- with the cut ``attention``, the first op that reads a per-step value (the gate): paper, section
  3.2, as diffusers caches. With ``gated`` the region continues to the residual add, as the paper's
  Open-Sora and Latte cache.

The *frontier* is the nodes that are read outside of the region. The cheapest cut between the mixer
and the frontier is cached. Going backwards, nodes that feed only the cut belong to the region too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.groups import Groups
from pab_compile.passes.graph.minimum_cut import minimum_cut
from pab_compile.passes.graph.ops import is_communication
from pab_compile.passes.graph.walk import fed_by, feeding, operands, positions, results

from .adds import stream_of
from .binding import Binding
from .hoisting import hoisted_nodes

_FACTOR_OPS = ("mul", "div")
_MAX_FACTOR_NODES = 40


@dataclass(frozen=True, eq=False)
class Growth:
    """What grew from one or several merged mixers: ``nodes`` in graph order, and ``frontier``."""

    mixers: tuple[int, ...]
    nodes: tuple[fx.Node, ...]
    frontier: tuple[fx.Node, ...]


class RegionFinder:
    """Grows the regions of all mixers of a graph at once, so that regions that meet can merge.

    Args:
        graph: a captured graph with binding times.
        seeds: per mixer, the nodes that make it; the last one is its output.
        kinds: per mixer, its kind: only mixers of one kind merge.
        cut: ``attention`` or ``gated``.
    """

    def __init__(
        self, graph: fx.Graph, seeds: Sequence[Sequence[fx.Node]], kinds: Sequence[str], cut: str
    ) -> None:
        self._order = positions(graph)
        self._graph = graph
        self._seeds = seeds
        self._kinds = kinds
        self._keep_gate_outside = cut == "attention"
        self._groups = Groups(range(len(seeds)))
        self._owner: dict[fx.Node, int] = {seed[-1]: index for index, seed in enumerate(seeds)}
        self._mixer_nodes = {node for seed in seeds for node in seed}
        self._ancestors = [feeding(seed) for seed in seeds]

    def grow(self) -> tuple[Growth, ...]:
        """Grow every region to its frontier. The result has one ``Growth`` per merged group."""
        for node in self._graph.nodes:
            if node.op == "call_function" and node not in self._mixer_nodes:
                groups = self._groups_to_join(node)
                if groups:
                    self._groups.merge(groups)
                    self._owner[node] = groups[0]
        return tuple(self._growth(group) for group in self._groups.leaders())

    def _growth(self, group: int) -> Growth:
        mixers = tuple(self._groups.members(group))
        nodes = [n for n, owner in self._owner.items() if self._groups.leader(owner) == group]
        nodes.sort(key=self._order.__getitem__)
        return Growth(mixers, tuple(nodes), tuple(results(nodes)))

    def _groups_to_join(self, node: fx.Node) -> list[int]:
        """The groups that a node belongs to; empty if the node stays outside."""
        foreign = [n for n in _latent_inputs(node) if n not in self._owner]
        latent_inputs = [n for n in _latent_inputs(node) if n in self._owner]
        if not latent_inputs or not all(self._is_own_factor(n, node) for n in foreign):
            return []
        if self._keep_gate_outside and any(
            ir.binding(n) == Binding.STEP for n in node.all_input_nodes
        ):
            return []
        groups = sorted({self._groups.leader(self._owner[n]) for n in latent_inputs})
        if len({self._kinds[group] for group in groups}) > 1:
            return []
        return [] if self._is_residual_add(node, groups) else groups

    def _is_own_factor(self, factor: fx.Node, product: fx.Node) -> bool:
        """Whether a factor comes from what the mixer reads, and only this product uses it."""
        if not ir.is_call(product, *_FACTOR_OPS):
            return False
        owner = next(n for n in product.all_input_nodes if n in self._owner)
        read = self._ancestors[self._groups.leader(self._owner[owner])]
        cone, pending = {product}, [factor]
        while pending:
            pending.sort(key=self._order.__getitem__)
            node = pending.pop()  # users come before what they use
            if (node is not factor and node in read) or node in cone:
                continue
            if ir.binding(node) == Binding.STEP and self._keep_gate_outside:
                return False
            if ir.binding(node) != Binding.LATENT:
                continue
            is_private = node not in read and all(user in cone for user in node.users)
            is_plain = node.op == "call_function" and node not in self._mixer_nodes
            if not is_private or not is_plain or len(cone) > _MAX_FACTOR_NODES:
                return False
            cone.add(node)
            pending.extend(node.all_input_nodes)
        return True

    def _is_residual_add(self, node: fx.Node, groups: Sequence[int]) -> bool:
        mixers = [mixer for group in groups for mixer in self._groups.members(group)]
        return any(stream_of(node, self._ancestors[mixer]) is not None for mixer in mixers)


def _latent_inputs(node: fx.Node) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if ir.binding(n) == Binding.LATENT]


def cheapest_cut(growth: Growth) -> tuple[fx.Node, ...]:
    """The tensors of least bytes that separate the mixers from the users of the frontier.

    Among equal cuts, the last one leaves the least to compute on reuse. If no cut is smaller, the
    result is the frontier itself. A model may exchange tensors between ranks by itself. Then the
    cut lies after every exchange of the region, so that a reuse exchanges nothing.
    """
    if any(ir.tensor(node) is None for node in growth.frontier):
        return ()
    inside = set(growth.nodes)
    exchanged = _before_exchanges(growth)
    sizes: dict[fx.Node, int | None] = {}
    edges: list[tuple[fx.Node, fx.Node]] = []
    starts: list[fx.Node] = []
    for node in growth.nodes:
        is_no_cut = ir.tensor(node) is None or node in exchanged
        sizes[node] = None if is_no_cut else ir.num_bytes(node)
        sources = [n for n in node.all_input_nodes if n in inside]
        edges += [(source, node) for source in sources]
        # A product with a factor of its own is cached after the product.
        if not sources or any(n not in inside for n in _latent_inputs(node)):
            starts.append(node)
    cut = minimum_cut(sizes, edges, starts, growth.frontier)
    frontier_bytes = sum(ir.num_bytes(node) for node in growth.frontier)
    return growth.frontier if cut is None or cut.size >= frontier_bytes else cut.nodes


def _before_exchanges(growth: Growth) -> set[fx.Node]:
    """Nodes of a region that feed a collective in it, without the frontier."""
    exchanges = [node for node in growth.nodes if is_communication(node)]
    return feeding(exchanges, within=set(growth.nodes)).difference(growth.frontier)


def dead_regions(
    graph: fx.Graph, cuts: Mapping[str, Sequence[fx.Node]], kept: Collection[fx.Node] = ()
) -> dict[str, tuple[fx.Node, ...]]:
    """For each cut, the nodes whose every use leads into this cut and into no other.

    Nodes that run once per generation stay outside (``passes.sites.hoisting``).

    Args:
        graph: a captured graph with binding times.
        cuts: site name -> the nodes to cache.
        kept: nodes that are needed although no edge shows it, such as starts of stretches.

    Returns:
        Site name -> nodes in graph order, cut included. Regions are disjoint. A site whose cut
        feeds back into its own region gets an empty region.
    """
    hoisted = hoisted_nodes(graph)
    owner = {node: name for name, cut in cuts.items() for node in cut}
    cut_nodes = frozenset(owner)
    for node in reversed(graph.nodes):
        if node.op != "call_function" or node in cut_nodes or not node.users:
            continue
        if node in hoisted or node in kept:
            continue
        owners = {owner.get(user) for user in node.users}
        if len(owners) == 1 and None not in owners:
            owner[node] = str(owners.pop())
    for node in graph.nodes:  # an output of a multi-output op stays with the op
        strays = node in owner and ir.is_getitem(node) and node not in cut_nodes
        if strays and owner.get(node.all_input_nodes[0]) != owner[node]:
            del owner[node]
    regions: dict[str, list[fx.Node]] = {name: [] for name in cuts}
    for node in graph.nodes:
        if node in owner:
            regions[owner[node]].append(node)
    return {
        name: () if _feeds_itself(nodes, cuts[name]) else tuple(nodes)
        for name, nodes in regions.items()
    }


def _feeds_itself(region: Sequence[fx.Node], cut: Sequence[fx.Node]) -> bool:
    """Whether a path leaves the region through the cut and comes back into it."""
    if len(cut) < 2:
        return False
    inside = set(region)
    leaving = {user for node in cut for user in node.users if user not in inside}
    return not (leaving | fed_by(leaving)).isdisjoint(operands(region))
