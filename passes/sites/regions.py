"""Regions: which nodes need not run when a site is reused, and which tensors to cache.

A region grows forward from a token mixer, along nodes that depend on the latents. A node joins when
all its latent-dependent inputs are in the region. The region ends before

- another token mixer, or the residual add (without one, it ends where the graph ends);
- an op that reads a value from elsewhere. A factor is allowed if it is computed from what the mixer
  reads, and only this product uses it: the attention's own gate, a normaliser of linear attention;
- with the cut ``attention``, the first op that reads a per-step value (the gate): paper, section
  3.2, as diffusers caches. With ``gated`` the region continues to the residual add, as the paper's
  Open-Sora and Latte cache.

With the cut ``branch`` the region takes in what runs beside the mixer too, if the whole residual
branch can be one region (``passes.sites.beside``). Otherwise it grows as with ``gated``.

The *frontier* is the nodes that are read outside of the region. A whole branch is cached there, as
what it adds to its streams. Of other regions the cheapest cut between the mixer and the frontier is
cached. Going backwards, nodes that feed only the cut belong to the region too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.groups import Groups
from pab_compile.passes.graph.minimum_cut import minimum_cut
from pab_compile.passes.graph.ops import is_communication
from pab_compile.passes.graph.walk import (
    Feeding,
    chain,
    fed_by,
    feeding,
    operands,
    positions,
    results,
)

from .adds import same, stream_of, to_cache
from .beside import Streams, cone, may_join, why_not
from .binding import Binding
from .growth import Growth, latent_inputs
from .hoisting import hoisted_nodes
from .inner import is_inner

_FACTOR_OPS = ("mul", "div")
_MAX_FACTOR_NODES = 40


class RegionFinder:
    """Grows the regions of all mixers of a graph at once, so that regions that meet can merge.

    Args:
        graph: a captured graph with binding times.
        seeds: per mixer, the nodes that make it; the last one is its output.
        kinds: per mixer, its kind. Only in a whole branch do mixers of several kinds merge.
        cut: ``attention``, ``gated`` or ``branch``.
    """

    def __init__(
        self, graph: fx.Graph, seeds: Sequence[Sequence[fx.Node]], kinds: Sequence[str], cut: str
    ) -> None:
        self._order = positions(graph)
        self._graph = graph
        self._seeds = seeds
        self._kinds = kinds
        self._keep_gate_outside = cut == "attention"
        self._whole_branches = cut == "branch"
        self._groups = Groups(range(len(seeds)))
        self._owner: dict[fx.Node, int] = {}
        self._beside: dict[fx.Node, int] = {}
        self._alone: dict[int, str] = {}
        self._noticed: dict[int, str] = {}
        self._joined: set[int] = set()
        self._apart: set[int] = set()
        self._mixer_nodes = {node for seed in seeds for node in seed}
        self._ancestors = Feeding(graph, seeds)

    def grow(self) -> tuple[Growth, ...]:
        """Grow every region to its frontier. The result has one ``Growth`` per merged group."""
        while True:
            growths = self._grow()
            if not self._whole_branches:
                return growths
            added = {node for growth in growths for node in growth.frontier}
            failed = {
                mixer: why
                for growth in growths
                if self._alone.keys().isdisjoint(growth.mixers)
                and (why := self._why_no_branch(growth, added))
                for mixer in growth.mixers
            }
            if not failed:
                return tuple(self._judged(growth) for growth in growths)
            joined = self._joined & failed.keys()
            self._apart |= joined
            self._alone |= {mixer: why for mixer, why in failed.items() if mixer not in joined}

    def _grow(self) -> tuple[Growth, ...]:
        self._groups = Groups(range(len(self._seeds)))
        self._owner = {seed[-1]: index for index, seed in enumerate(self._seeds)}
        self._beside, self._noticed, self._joined = {}, {}, set()
        for node in self._graph.nodes:
            if node.op == "call_function" and node not in self._mixer_nodes:
                groups = self._groups_to_join(node)
                if groups:
                    self._groups.merge(groups)
                    self._owner[node] = groups[0]
        nodes, beside = self._by_group(self._owner), self._by_group(self._beside)
        return tuple(
            self._growth(group, nodes[group], beside[group]) for group in self._groups.leaders()
        )

    def _by_group(self, owners: Mapping[fx.Node, int]) -> dict[int, list[fx.Node]]:
        """The nodes of every group, in graph order."""
        found: dict[int, list[fx.Node]] = {group: [] for group in self._groups.leaders()}
        for node, owner in owners.items():
            found[self._groups.leader(owner)].append(node)
        return {group: sorted(nodes, key=self._order.__getitem__) for group, nodes in found.items()}

    def _growth(self, group: int, nodes: Sequence[fx.Node], beside: Sequence[fx.Node]) -> Growth:
        mixers, frontier = self._groups.members(group), results([*nodes, *beside])
        return Growth(tuple(mixers), tuple(nodes), tuple(frontier), tuple(beside))

    def _groups_to_join(self, node: fx.Node) -> list[int]:
        """The groups that a node belongs to; empty if the node stays outside."""
        latent = latent_inputs(node)
        foreign = [n for n in latent if n not in self._owner]
        owned = [n for n in latent if n in self._owner]
        if not owned:
            return []
        if self._keep_gate_outside and any(
            ir.binding(n) == Binding.STEP for n in node.all_input_nodes
        ):
            return []
        groups = sorted({self._groups.leader(self._owner[n]) for n in owned})
        if self._are_of_several_kinds(groups) and not self._may_join_more(groups):
            self._notice(groups, "it holds attentions of several kinds")
            return []
        if self._is_residual_add(node, groups):
            return []
        if not self._may_join(node, foreign, groups):
            return []
        if self._are_of_several_kinds(groups):
            self._joined.update(self._members(groups))
        return groups

    def _may_join(self, node: fx.Node, foreign: Sequence[fx.Node], groups: Sequence[int]) -> bool:
        """Whether what a region does not hold may join it in an op."""
        if not foreign or not self._is_whole(groups):
            return all(self._is_own_factor(n, node) for n in foreign)
        if not may_join(node):
            self._notice(groups, "it holds a product that may mix tokens")
            return False
        streams = self._streams(self._members(groups))
        beside: dict[fx.Node, int] = {}
        for start in foreign:
            found = cone(start, streams)
            if found is None:
                self._notice(groups, "what runs beside it has no end, or another input")
                return False
            if not self._owner.keys().isdisjoint(found):
                return False
            if not self._mixer_nodes.isdisjoint(found):
                self._notice(groups, "another attention runs beside it")
                return False
            beside |= dict.fromkeys(found, groups[0])
        self._beside |= beside
        return True

    def _are_of_several_kinds(self, groups: Sequence[int]) -> bool:
        return len({self._kinds[mixer] for mixer in self._members(groups)}) > 1

    def _is_whole(self, groups: Sequence[int]) -> bool:
        """Whether some groups may still become a whole branch."""
        return self._whole_branches and self._alone.keys().isdisjoint(self._members(groups))

    def _may_join_more(self, groups: Sequence[int]) -> bool:
        """Whether whole branches may hold attentions of several kinds, and sums of their own."""
        return self._is_whole(groups) and self._apart.isdisjoint(self._members(groups))

    def _members(self, groups: Sequence[int]) -> list[int]:
        return [mixer for group in groups for mixer in self._groups.members(group)]

    def _streams(self, mixers: Sequence[int]) -> Streams:
        return Streams([self._ancestors.of(mixer) for mixer in mixers], self._owner)

    def _notice(self, groups: Sequence[int], why: str) -> None:
        """Keep the first reason why a region cannot go on."""
        for mixer in self._members(groups):
            self._noticed.setdefault(mixer, why)

    def _why_no_branch(self, growth: Growth, added: set[fx.Node]) -> str:
        streams = self._streams(growth.mixers)
        why = why_not(growth, self._mixer_nodes, streams, added)
        noticed = [self._noticed[mixer] for mixer in growth.mixers if mixer in self._noticed]
        return next(iter(noticed), why) if why else ""

    def _judged(self, growth: Growth) -> Growth:
        refused = [self._alone[mixer] for mixer in growth.mixers if mixer in self._alone]
        return replace(growth, is_branch=not refused, refused=next(iter(refused), ""))

    def _is_own_factor(self, factor: fx.Node, product: fx.Node) -> bool:
        """Whether a factor comes from what the mixer reads, and only this product uses it."""
        if not ir.is_call(product, *_FACTOR_OPS):
            return False
        owner = next(n for n in product.all_input_nodes if n in self._owner)
        read = self._ancestors.of(self._groups.leader(self._owner[owner]))
        cone, pending = {product}, [factor]
        while pending:
            pending.sort(key=self._order.__getitem__)
            node = pending.pop()  # users come before what they use
            if (node is not factor and node in read) or node in cone:
                continue
            if ir.binding(node) == Binding.STEP and self._keep_gate_outside:
                if not self._is_made_of_operands(node, self._groups.leader(self._owner[owner])):
                    return False
                continue
            if ir.binding(node) != Binding.LATENT:
                continue
            is_private = node not in read and all(user in cone for user in node.users)
            is_plain = node.op == "call_function" and node not in self._mixer_nodes
            if not is_private or not is_plain or len(cone) > _MAX_FACTOR_NODES:
                return False
            cone.add(node)
            pending.extend(node.all_input_nodes)
        return True

    def _is_made_of_operands(self, node: fx.Node, mixer: int) -> bool:
        """Whether a per-step value has the step from operands of a mixer alone, as keys have."""
        operands_of = {own for n in operands(self._seeds[mixer]) for own in chain(n, same)}
        pending, seen = [node], set[fx.Node]()
        while pending:
            node = pending.pop()
            if node in operands_of or node in seen or ir.binding(node) != Binding.STEP:
                continue
            if node.op != "call_function" or len(seen) > _MAX_FACTOR_NODES:
                return False
            seen.add(node)
            pending.extend(node.all_input_nodes)
        return True

    def _is_residual_add(self, node: fx.Node, groups: Sequence[int]) -> bool:
        mixers = self._members(groups)
        if not self._is_whole(groups):
            return any(stream_of(node, self._ancestors.of(mixer)) is not None for mixer in mixers)
        streams = self._streams(mixers)
        if not streams.of(node):
            return False
        if self._may_join_more(groups) and is_inner(node, streams, self._owner):
            self._joined.update(mixers)
            return False
        return True


def cut_of_growth(growth: Growth) -> tuple[fx.Node, ...]:
    """The tensors to cache: what a whole branch adds, or the cheapest cut of another region."""
    if not growth.is_branch:
        return cheapest_cut(growth)
    return tuple(dict.fromkeys(to_cache(node, growth.inside) for node in growth.frontier))


def cheapest_cut(growth: Growth) -> tuple[fx.Node, ...]:
    """The fewest elements that separate the mixers from the users of the frontier.

    Among equal cuts, the last one leaves the least to compute on reuse. If no cut is smaller, the
    result is the frontier itself. Types have no influence on where the cut is, but a cast to a
    larger type stays outside. A model may exchange tensors between ranks by itself. Then the cut
    lies after every exchange of the region, so that a reuse exchanges nothing.
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
        sizes[node] = None if is_no_cut else _num_elements(node)
        sources = [n for n in node.all_input_nodes if n in inside]
        edges += [(source, node) for source in sources]
        # A product with a factor of its own is cached after the product.
        if not sources or any(n not in inside for n in latent_inputs(node)):
            starts.append(node)
    cut = minimum_cut(sizes, edges, starts, growth.frontier)
    frontier_size = sum(map(_num_elements, growth.frontier))
    chosen = growth.frontier if cut is None or cut.size >= frontier_size else cut.nodes
    return tuple(dict.fromkeys(to_cache(node, inside) for node in chosen))


def _num_elements(node: fx.Node) -> int:
    return sum(tensor.numel() for tensor in ir.tensors(node))


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
