"""Merge: makes merged sites of the sites that are always reused together.

``passes.rewrite.coalesce`` says what a merged site is, and when it is made.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.groups import Groups
from pab_compile.passes.graph.outline import copy_with_nodes
from pab_compile.passes.graph.walk import fed_by
from pab_compile.passes.sites.binding import Binding
from pab_compile.passes.sites.find_sites import with_region
from pab_compile.passes.sites.regions import dead_regions
from pab_compile.passes.sites.site import Site, Start

from .sums import Sums, add_starts, find_sums, live_nodes

_ALONE = "no other is added to it"
_SAVES_NOTHING = "sums would take as many bytes"
_TOO_FEW = "its sums need more sites than there are"
_SCALED = "what it adds is scaled anew at every step"


class Merge:
    """Merges the sites of one pattern, on a copy of the graph.

    Args:
        graph_module: the graph; not modified.
        sites: all its sites.
        names: names of the sites of the pattern.

    Attributes:
        graph_module: the copy.
        sites: all sites, with merged ones in the place of their first.
        merged: the merged sites.
        reasons: name of a site of the pattern that stays single -> why.
    """

    def __init__(
        self, graph_module: fx.GraphModule, sites: Sequence[Site], names: Collection[str]
    ) -> None:
        self.graph_module, nodes = copy_with_nodes(graph_module)
        self.sites: Sequence[Site] = [_moved(site, nodes) for site in sites]
        self._graph = self.graph_module.graph
        members = [site for site in self.sites if site.name in names]
        self._members = [site for site in members if not _is_scaled_anew(site)]
        self._scaled = [site for site in members if _is_scaled_anew(site)]
        self._owner = {node: site.name for site in self._members for node in site.ends}
        self._sums = find_sums(self._graph, frozenset(self._owner))
        self._ends = ends_to_cache(self._sums, self._owner)
        self.reasons = self._why_single()
        self.merged: list[Site] = []
        if self._ends:
            self._starts = self._with_starts()
            self._replace_sites()
            self.graph_module.recompile()

    def _why_single(self) -> dict[str, str]:
        """For every site, why it would stay single."""
        reasons = {site.name: _SCALED for site in self._scaled}
        reasons |= {site.name: _ALONE for site in self._members}
        for end, reader in self._sums.ends.items():
            terms = self._sums.terms[end]
            is_alone = len({self._owner[term] for term in terms}) == 1
            why = f"{ir.op_name(reader)} reads what it adds" if is_alone else _SAVES_NOTHING
            if end not in self._ends:
                reasons |= {self._owner[term]: why for term in terms}
        return reasons

    def _with_starts(self) -> dict[fx.Node, Start]:
        """The starts of the ends. An end without a computed part has none."""
        before = set(self._graph.nodes)
        starts = add_starts(self._graph, self._sums, self._ends)
        self._added = [node for node in self._graph.nodes if node not in before]
        return {
            end: Start(start, _type_of_terms(end, self._sums.terms[end]))
            for end, start in starts.items()
            if start is not None
        }

    def _replace_sites(self) -> None:
        """Put merged sites in the place of their first."""
        made: dict[str, Site] = {}
        gone: set[str] = set()
        for cut, members in self._groups():
            found = self._as_one(cut, members) or self._one_per_value(cut, members)
            if not found:
                self.reasons |= {site.name: _TOO_FEW for site in members}
            for site in found:
                made[site.name] = site
                gone.update(part.name for part in site.parts)
        kept = [
            made.get(site.name, site)
            for site in self.sites
            if site.name in made or site.name not in gone
        ]
        regions = self._regions(kept)
        self.sites = [with_region(site, regions.get(site.name, ())) for site in kept]
        self.merged = [site for site in self.sites if site.parts and site.name in made]
        for part in (part for site in self.merged for part in site.parts):
            self.reasons.pop(part.name, None)
        used = {start.node for site in self.merged for start in site.starts.values()}
        for node in reversed(self._added):
            if not node.users and node not in used:  # the start of a group that stays single
                self._graph.erase_node(node)

    def _groups(self) -> list[tuple[list[fx.Node], list[Site]]]:
        """The values to cache, in groups that are computed from common nodes, with their sites.

        Only groups with an end are returned.
        """
        values = dict.fromkeys(self._ends)
        for end in self._sums.ends:
            values |= dict.fromkeys(() if end in values else self._sums.terms[end])
        starts = {end: start.node for end, start in self._starts.items()}
        live = live_nodes(self._graph, frozenset(values), starts)
        dead = [
            node
            for node in ir.calls(self._graph)
            if node in values or (node not in live and ir.binding(node) == Binding.LATENT)
        ]
        parts = Groups(dead)
        inner = set(dead).difference(values)
        for node in dead:
            parts.merge([node, *(n for n in node.all_input_nodes if n in inner)])
        found: dict[fx.Node, tuple[list[fx.Node], list[Site]]] = {}
        for node in dead:
            if node in values:
                found.setdefault(parts.leader(node), ([], []))[0].append(node)
        for site in self._members:
            found[parts.leader(site.ends[0])][1].append(site)
        return [group for group in found.values() if any(node in self._ends for node in group[0])]

    def _as_one(self, cut: Sequence[fx.Node], members: Sequence[Site]) -> list[Site]:
        """One merged site; none if its values feed one another, or start from one another."""
        site = self._merged(cut, members)
        others = [other for other in self.sites if other.name not in {m.name for m in members}]
        region = self._regions([site, *others])[site.name]
        leaving = {user for node in cut for user in node.users}.difference(region)
        leaving.update(cut)  # a returned end may be the start of another
        starts = {start.node for start in site.starts.values()}
        feeds_itself = not (leaving | fed_by(leaving)).isdisjoint(starts)
        return [] if not region or feeds_itself else [site]

    def _one_per_value(self, cut: Sequence[fx.Node], members: Sequence[Site]) -> list[Site]:
        """A site for every value to cache, merged if it has an end or several parts.

        There are none if there are more values than sites.
        """
        parts: dict[fx.Node, list[Site]] = {value: [] for value in cut}
        for site in members:
            added = [v for v in cut if not set(self._sums.terms[v]).isdisjoint(site.ends)]
            empty = [v for v in added if not parts[v]]
            parts[(empty or added or cut)[0]].append(site)
        if not all(parts.values()):
            return []
        return [
            self._merged([value], found)
            for value, found in parts.items()
            if value in self._ends or len(found) > 1
        ]

    def _merged(self, cut: Sequence[fx.Node], parts: Sequence[Site]) -> Site:
        starts = {node: self._starts[node] for node in cut if node in self._starts}
        return replace(parts[0], cut=tuple(cut), parts=tuple(parts), starts=starts)

    def _regions(self, sites: Sequence[Site]) -> dict[str, tuple[fx.Node, ...]]:
        kept = frozenset(start.node for start in self._starts.values())
        return dead_regions(self._graph, {site.name: site.cut for site in sites if site.cut}, kept)


def _is_scaled_anew(site: Site) -> bool:
    """Whether the step changes what a site makes of its cut. A sum would keep the step's part."""
    reached = list(site.ends)
    for node in reached:
        if node in site.cut:
            continue
        if any(ir.binding(n) == Binding.STEP for n in node.all_input_nodes):
            return True
        reached += [n for n in node.all_input_nodes if ir.binding(n) == Binding.LATENT]
    return False


def ends_to_cache(sums: Sums, owner: Mapping[fx.Node, str]) -> list[fx.Node]:
    """The ends whose sums are cached in the place of their terms, since this saves memory.

    Args:
        sums: the carried values of a graph.
        owner: given value -> name of its site.
    """
    chosen = {
        end
        for end, terms in sums.terms.items()
        if end in sums.ends and len({owner[term] for term in terms}) > 1
    }
    together = Groups(sums.ends)
    first: dict[fx.Node, fx.Node] = {}
    for end in sums.ends:
        together.merge([end, *(first.setdefault(term, end) for term in sums.terms[end])])
    for leader in together.leaders():
        group = together.members(leader)
        for end in group:
            if end in chosen and _bytes(sums, group, chosen - {end}) <= _bytes(sums, group, chosen):
                chosen.remove(end)
        if _bytes(sums, group, chosen) >= _bytes(sums, group, ()):
            chosen.difference_update(group)
    return [end for end in sums.ends if end in chosen]


def _bytes(sums: Sums, ends: Sequence[fx.Node], chosen: Collection[fx.Node]) -> int:
    """Bytes that are cached for some ends: sums for the chosen ones, terms for the others."""
    others = dict.fromkeys(t for end in ends if end not in chosen for t in sums.terms[end])
    kept = (_kept_bytes(e, _type_of_terms(e, sums.terms[e])) for e in ends if e in chosen)
    return sum(kept) + sum(map(ir.num_bytes, others))


def _kept_bytes(end: fx.Node, dtype: torch.dtype) -> int:
    value = ir.tensor(end)
    return 0 if value is None else value.numel() * dtype.itemsize


def _type_of_terms(end: fx.Node, terms: Sequence[fx.Node]) -> torch.dtype:
    """The type of a difference: that of the terms if it needs less memory than the end's."""
    whole = ir.tensor(end)
    assert whole is not None, end
    added = [tensor.dtype for tensor in map(ir.tensor, terms) if tensor is not None]
    narrow = reduce(torch.promote_types, added)
    return narrow if narrow.itemsize < whole.dtype.itemsize else whole.dtype


def _moved(site: Site, nodes: dict[fx.Node, fx.Node]) -> Site:
    """A site, with its nodes in a copied graph."""
    return replace(
        site,
        cut=tuple(nodes[n] for n in site.cut),
        region=tuple(nodes[n] for n in site.region),
        ends=tuple(nodes[n] for n in site.ends),
        parts=tuple(_moved(part, nodes) for part in site.parts),
        starts={nodes[end]: replace(s, node=nodes[s.node]) for end, s in site.starts.items()},
    )
