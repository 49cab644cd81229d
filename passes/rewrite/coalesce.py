"""Coalescing: sites that are always reused together cache the sum of their outputs, once.

With ``cut="gated"``, ``%a`` and ``%m`` are what two sites cache::

    %x1 = add(%x, %a)
    %m = ...(%x1)                 # region of the second site
    %x2 = add(%x1, %m)
    %y = layer_norm(%x2)

The part of the stream from the *start* ``%x`` to the *end* ``%x2`` is a stretch. One merged site
takes the place of both. Its cut is the end, and it caches the difference ``%x2 - %x``. A step that
computes it hands on ``%x2`` itself, so it is exact. A step that reuses it hands on ``%x`` plus the
difference, and ``%x1``, ``%m`` and their readers need not run. This equals what the single sites
give up to rounding. The same is true of predictions, which are weighted sums.

The graph shows where this is valid (``passes.rewrite.sums``). A stretch ends where an op other than
a sum, view or cast reads the stream on a step that reuses the sites.

Find: the ends, and the sites whose outputs meet in each of them.

Decide: an end is cached if this saves memory. Sites that are computed from each other without a
cached value in between become one merged site, with all its ends. A stream that only sites read is
not cached. If the merged site would feed itself through the rest of the graph, each of its cached
values gets a site of its own. What several of these need is computed if one of them is
(``passes.rewrite.demand``). So a reuse never computes what it would not without coalescing.

Apply: the graph only gets the starts that no node computes yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from torch import fx

from pab_compile.passes.errors import InvariantError
from pab_compile.passes.graph import ir
from pab_compile.passes.sites.site import Site

from .merge import Merge
from .sums import live_nodes, may_carry

Pattern = Callable[[Site], Hashable | None]


@dataclass(frozen=True, eq=False)
class Coalesced:
    """The result of coalescing.

    Attributes:
        graph_module: the graph, or a copy with more starts.
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
    for names in _classes(sites, pattern).values():
        merge = Merge(graph_module, sites, names)
        if merge.merged:
            graph_module, sites = merge.graph_module, merge.sites
        lines += map(merged_line, merge.merged)
        reasons |= merge.reasons
        count += len(merge.merged)
    for why, number in Counter(reasons.values()).items():
        first = next(name for name, reason in reasons.items() if reason == why)
        lines.append(f"not coalesced: {number} site(s), first {first}: {why}")
    return Coalesced(graph_module, tuple(sites), tuple(lines), count)


def verify_coalesced(
    after: fx.GraphModule, before: fx.GraphModule, sites: Sequence[Site], pattern: Pattern
) -> None:
    """Check a coalesced graph and its sites, independently of how they were made.

    - Inputs and outputs are as before. Only sums, concatenations, views and casts were added.
    - A merged site has a region.
    - A step that reuses all sites of a pattern computes nothing that it would not compute without
      coalescing, except what was added. The same is true if all sites are reused.

    Args:
        after: the coalesced graph.
        before: the graph that it comes from.
        sites: the sites of the coalesced graph, with those that they consist of.
        pattern: as for ``coalesce``.

    Raises:
        InvariantError: the first invariant that does not hold.
    """
    after.graph.lint()
    for find in (ir.placeholders, ir.outputs):
        old, new = ([ir.shape(n) for n in find(g.graph)] for g in (before, after))
        if old != new:
            raise InvariantError(f"inputs or outputs changed from {old} to {new}")
    known = {node.name for node in before.graph.nodes}
    added = {node.name: node for node in after.graph.nodes if node.name not in known}
    lost = known.difference(node.name for node in after.graph.nodes)
    for name in (*sorted(lost), *(name for name, node in added.items() if not may_carry(node))):
        raise InvariantError(f"{name} is in one graph only")
    together: dict[Hashable, list[Site]] = {}
    for site in sites:
        if site.parts and not site.can_broadcast:
            raise InvariantError(f"{site.name} was merged and has no region")
        if site.can_broadcast:
            together.setdefault(pattern(site.singles[0]), []).append(site)
    for reused in (*together.values(), [site for group in together.values() for site in group]):
        singles = [single for site in reused for single in site.singles]
        allowed = _computed(before.graph, singles) | added.keys()
        more = [name for name in _computed(after.graph, reused) if name not in allowed]
        if more:
            raise InvariantError(
                f"{more[0]} is computed on a step that reuses {reused[0].name}, but would not be "
                "without coalescing"
            )


def _computed(graph: fx.Graph, reused: Sequence[Site]) -> dict[str, None]:
    """Names of the calls that a step needs to compute if it reuses these sites."""
    node_of = {node.name: node for node in graph.nodes}
    given = frozenset(node_of[node.name] for site in reused for node in site.cut)
    starts = {
        node_of[end.name]: node_of[start.node.name]
        for site in reused
        for end, start in site.starts.items()
    }
    live = live_nodes(graph, given, starts)
    return {node.name: None for node in ir.calls(graph) if node in live and node not in given}


def _classes(sites: Sequence[Site], pattern: Pattern) -> dict[Hashable, list[str]]:
    """The names of the sites of every pattern."""
    classes: dict[Hashable, list[str]] = {}
    for site in sites:
        known = pattern(site) if site.can_broadcast and not site.parts else None
        if known is not None:
            classes.setdefault(known, []).append(site.name)
    return classes


def merged_line(site: Site) -> str:
    """What a merged site caches, for people."""
    before = sum(part.cache_bytes for part in site.parts)
    tensors = sum(len(part.cut) for part in site.parts)
    return (
        f"coalesced {len(site.parts)} sites, {site.parts[0].name} to {site.parts[-1].name}: they "
        f"cache {len(site.cut)} tensor(s) of {site.cache_bytes} bytes instead of {tensors} of "
        f"{before}"
    )
