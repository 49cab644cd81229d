"""Coalescing: sites that are always reused together cache the sum of their outputs, once.

Before, with ``cut="gated"`` (``%a`` and ``%m`` are what two sites cache)::

    %x1 = add(%x, %a)
    %m = ...(%x1)                 # region of the second site
    %x2 = add(%x1, %m)
    %y = layer_norm(%x2)

After::

    %x1 = add(%x, %a)
    %m = ...(%x1)
    %x2 = add(%x1, %m)
    %x2_delta = sub(%x2, %x)      # the one tensor to cache
    %x2_sum = add(%x, %x2_delta)
    %y = layer_norm(%x2_sum)

On a step that reuses both, ``%x1``, ``%x2`` and their readers need not run. ``%x2_sum`` equals
``%x2`` up to rounding. The same is true of predictions, which are weighted sums.

The graph shows where this is valid (``passes.rewrite.sums``). A sum is cached where an op other
than a sum, view or cast reads it on such a step. There a stretch ends and the next begins.
Sites whose outputs meet in a sum are merged, and so are sites of other streams that read it in
between. Sites stay single if a stretch would read its own sum, or if merging saves no memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from pab_compile.passes.errors import InvariantError
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.groups import Groups
from pab_compile.passes.graph.outline import copy_with_nodes
from pab_compile.passes.sites.find_sites import with_region
from pab_compile.passes.sites.regions import dead_regions
from pab_compile.passes.sites.site import Site

from .sums import add_sums, find_sums, live_nodes, may_carry

Pattern = Callable[[Site], Hashable | None]
_OWN_SUM = "its stretch would read its own sum, or nothing is saved"
_READ_INSIDE = "what computes on its own reads the stream between the merged sites"


@dataclass(frozen=True, eq=False)
class Coalesced:
    """The result of coalescing.

    Attributes:
        graph_module: a copy of the graph, with the sums.
        sites: in model order. A merged site has the sites that it consists of as ``parts``.
        lines: which sites were merged, and why others were not, to be printed.
        count: number of merged sites.
    """

    graph_module: fx.GraphModule
    sites: tuple[Site, ...]
    lines: tuple[str, ...]
    count: int


def coalesce(graph_module: fx.GraphModule, sites: Sequence[Site], pattern: Pattern) -> Coalesced:
    """Merge sites that are always reused together, where their outputs are only added up.

    Args:
        graph_module: a captured graph with binding times; not modified.
        sites: its sites. Sites that are merged already stay as they are.
        pattern: what a site does at every step. Sites of equal patterns compute and reuse together.
            None if that is not known, or if the site is never reused.
    """
    lines: list[str] = []
    reasons: dict[str, str] = {}
    count = 0
    classes: dict[Hashable, list[str]] = {}
    for site in sites:
        known = pattern(site) if site.can_broadcast and not site.parts else None
        if known is not None:
            classes.setdefault(known, []).append(site.name)
    for names in classes.values():
        refused: dict[str, str] = {}
        while True:
            attempt = _Attempt(graph_module, sites, names, refused)
            bad = attempt.apply()
            if not bad:
                break
            refused |= bad
        if attempt.count:
            graph_module, sites = attempt.graph_module, attempt.sites
        lines += attempt.lines
        count += attempt.count
        for name in names:
            reason = attempt.reasons.get(name, "no other is added to it")
            reasons[name] = refused.get(name, reason)
    single = Counter(
        reasons[site.name] for site in sites if site.name in reasons and not site.parts
    )
    first = {reasons[site.name]: site.name for site in reversed(sites) if site.name in reasons}
    for why, number in single.items():
        lines.append(f"not coalesced: {number} site(s), first {first[why]}: {why}")
    return Coalesced(graph_module, tuple(sites), tuple(lines), count)


def verify_coalesced(after: fx.GraphModule, before: fx.GraphModule, sites: Sequence[Site]) -> None:
    """Check a coalesced graph and its sites, independently of how they were made.

    - Inputs and outputs are as before. Only additions, views and casts were added or removed, and
      differences were added.
    - If the cached tensors of the sites are given, no node that must run reads what a part of a
      merged site alone would cache.

    Raises:
        InvariantError: the first invariant that does not hold.
    """
    after.graph.lint()
    for find in (ir.placeholders, ir.outputs):
        old, new = ([ir.shape(n) for n in find(g.graph)] for g in (before, after))
        if old != new:
            raise InvariantError(f"inputs or outputs changed from {old} to {new}")
    for left, right in ((before, after), (after, before)):
        there = {node.name for node in right.graph.nodes}
        for node in ir.calls(left.graph):
            added = left is after and ir.is_call(node, "sub")
            if node.name not in there and not (added or may_carry(node)):
                raise InvariantError(f"{node.name} ({ir.op_name(node)}) is in one graph only")
    live = _live_on_reuse(after.graph, sites)
    for site in sites:
        for part, node in _read_on_reuse(site, live):
            raise InvariantError(f"{part.name}: {node.name} is read on a step that reuses it")


def _live_on_reuse(graph: fx.Graph, sites: Sequence[Site]) -> frozenset[fx.Node]:
    """What is computed on a step that reuses every merged site and no other."""
    return live_nodes(graph, frozenset(n for site in sites if site.parts for n in site.cut))


def _read_on_reuse(site: Site, live: frozenset[fx.Node]) -> list[tuple[Site, fx.Node]]:
    """The parts of a merged site, with what they would cache, that a reuse reads nevertheless."""
    return [
        (part, node)
        for part in site.parts
        for node in part.cut
        if node in live and node not in site.cut
    ]


class _Attempt:
    """Merges all sites of one pattern, on a copy of the graph.

    Args:
        graph_module: the graph.
        sites: all its sites.
        members: names of the sites of the pattern.
        refused: names of those among them that must stay single, with the reason.

    Attributes:
        reasons: name of a site that stays single -> why.
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        sites: Sequence[Site],
        members: Sequence[str],
        refused: Mapping[str, str],
    ) -> None:
        self.graph_module, nodes = copy_with_nodes(graph_module)
        self.sites = [_moved(site, nodes) for site in sites]
        self.lines: list[str] = []
        self.reasons: dict[str, str] = {}
        self.count = 0
        self._graph = self.graph_module.graph
        self._members = [site for site in self.sites if site.name in members]
        self._owner = {node: site.name for site in self._members for node in site.ends}
        self._sums = find_sums(self._graph, frozenset(self._owner))
        self._refused = refused
        self._groups = self._find_groups()

    def apply(self) -> dict[str, str]:
        """Rewrite the graph; returns the sites that turn out not to be mergeable, with reasons."""
        merged = [node for node in self._sums.exits if self._is_merged(node)]
        loaded = add_sums(self._graph, self._sums, merged)
        cuts: dict[str, dict[fx.Node, None]] = {}
        for node in merged:
            name = self._groups[self._owner[self._sums.terms[node][0]]]
            cuts.setdefault(name, {})[loaded[node]] = None
        for node in self._sums.exits:
            for term in () if node in merged else self._sums.terms[node]:
                name = self._groups[self._owner[term]]
                if name in cuts:
                    cuts[name][term] = None
                else:
                    reader = self._sums.reader(node)
                    self.reasons[self._owner[term]] = f"{ir.op_name(reader)} reads what it adds"
        for node in reversed(self._graph.nodes):
            if node.op == "call_function" and not node.users and not ir.must_stay(node):
                self._graph.erase_node(node)
        self.graph_module.recompile()
        return self._replace_sites({name: tuple(cut) for name, cut in cuts.items()})

    def _find_groups(self) -> dict[str, str]:
        """Site -> the first site of its group, which is itself if it stays single."""
        groups = Groups(site.name for site in self._members)
        region_of = {node: site.name for site in self._members for node in site.region}

        for node in self._sums.carried:
            names = [self._owner[term] for term in self._sums.terms[node]]
            # A site that reads a sum in between is reused together with it, or reads an exit.
            if node not in self._sums.exits:
                names += [region_of[user] for user in node.users if names and user in region_of]
            if not any(name in self._refused for name in names):
                groups.merge(names)
        return {site.name: groups.leader(site.name) for site in self._members}

    def _is_merged(self, exit_: fx.Node) -> bool:
        names = {self._owner[term] for term in self._sums.terms[exit_]}
        is_refused = any(name in self._refused for name in names)
        return len(self._sums.terms[exit_]) > 1 and len(names) > 1 and not is_refused

    def _replace_sites(self, cuts: dict[str, tuple[fx.Node, ...]]) -> dict[str, str]:
        """Put merged sites in the place of their first; returns those that fail, with reasons."""
        parts = {
            name: tuple(site for site in self._members if self._groups[site.name] == name)
            for name in cuts
        }
        gone = {part.name for name, group in parts.items() for part in group if part.name != name}
        kept = [
            replace(site, cut=cuts[site.name], parts=parts[site.name])
            if site.name in cuts
            else site
            for site in self.sites
            if site.name not in gone
        ]
        regions = dead_regions(self._graph, {site.name: site.cut for site in kept if site.cut})
        self.sites = [with_region(site, regions.get(site.name, ())) for site in kept]
        bad: dict[str, str] = {}
        live = _live_on_reuse(self._graph, self.sites)
        for site in self.sites:
            if site.name not in cuts:
                continue
            names_of_parts = [part.name for part in parts[site.name]]
            before = sum(part.cache_bytes for part in site.parts)
            if not site.can_broadcast or site.cache_bytes >= before:
                bad |= dict.fromkeys(names_of_parts, _OWN_SUM)
            elif _read_on_reuse(site, live):
                bad |= dict.fromkeys(names_of_parts, _READ_INSIDE)
            tensors = sum(len(part.cut) for part in site.parts)
            names = f"{site.parts[0].name} to {site.parts[-1].name}"
            self.lines.append(
                f"coalesced {len(site.parts)} sites, {names}: they cache {len(site.cut)} tensor(s) "
                f"of {site.cache_bytes} bytes instead of {tensors} of {before}"
            )
            self.count += 1
        return bad


def _moved(site: Site, nodes: dict[fx.Node, fx.Node]) -> Site:
    """A site, with its nodes in a copied graph."""
    return replace(
        site,
        cut=tuple(nodes[n] for n in site.cut),
        region=tuple(nodes[n] for n in site.region),
        ends=tuple(nodes[n] for n in site.ends),
        parts=tuple(_moved(part, nodes) for part in site.parts),
    )
