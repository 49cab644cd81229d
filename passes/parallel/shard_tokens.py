"""The pass: from the graph of one device to the graph of one rank (find, decide, apply)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import fx

from pab_compile.passes.errors import ShardingError
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.flops import count_flops
from pab_compile.passes.program import Program
from pab_compile.passes.sites.binding import Binding
from pab_compile.passes.sites.regions import dead_regions
from pab_compile.passes.sites.site import Site

from .check import (
    check_exchanges,
    check_layout,
    check_regions,
    check_sharded,
    collectives,
)
from .choose import choose, site_of_nodes
from .localise import Localised, localise
from .placement import describe
from .sends import mark_sends
from .shard import Ranks


@dataclass(frozen=True)
class ShardTokens:
    """Shard the tokens of the video along one axis. Runs after ``FindSites``.

    The regions stay the same and contain the collectives that re-shard for them. So a reuse
    exchanges nothing.

    Attributes:
        ranks: the ranks, and which of them the graph is for.
        share: the share of the steps at which the plan computes a site.
        axis: the axis that the user asks for; None to choose it by bytes.
        ring: ranks of a ring; None for rings only where heads run out.
    """

    ranks: Ranks
    share: Callable[[Site], float]
    axis: str | None = None
    ring: int | None = None
    name: str = "parallel"

    def __call__(self, program: Program) -> int:
        """Rewrite the graph for one rank. Returns the number of its collectives."""
        graph_module = program.graph_module
        choice = choose(program, self.ranks.size, self.share, self.axis, self.ring)
        check_layout(choice.layout)
        local = localise(graph_module, choice.layout, self.ranks)
        check_exchanges(local.graph_module, local.purposes, self.ranks)
        inside: dict[str, Sequence[fx.Node]] = {}
        sites = site_of_nodes(program.sites)
        for detour, nodes in local.exchanges.items():
            site = sites.get(detour.core[-1])
            if site is not None:
                inside[site.name] = (*inside.get(site.name, ()), *nodes)
        program.sites = local_sites(program.sites, local)
        check_regions(program.sites, inside)
        program.graph_module = local.graph_module
        graph = local.graph_module.graph
        mark_sends(graph, local.purposes, self.ranks, "tokens", program.sites)
        program.sharding = (*program.sharding, *choice.lines())
        return len(collectives(list(graph.nodes)))

    def verify(self, after: fx.GraphModule, before: fx.GraphModule) -> None:
        """Check the rewritten graph."""
        check_sharded(after, before, self.ranks)


def refuse_own_exchanges(graph: fx.Graph) -> None:
    """Refuse the captured graph of a model that is parallel by itself.

    Gathers of weights are no such exchange: every rank gets the same.

    Raises:
        ShardingError: it contains a collective. The message says which.
    """
    own = [n for n in collectives(list(graph.nodes)) if ir.binding(n) != Binding.CONSTANT]
    if own:
        raise ShardingError(
            f"The model exchanges tensors between ranks itself: {describe(own[0])}. It cannot be "
            "sharded once more. Leave mesh, batch_mesh, sequence_parallel and batch_parallel out: "
            "its collectives stay, and those of an attention disappear where its output is reused."
        )


def local_sites(sites: Sequence[Site], local: Localised) -> tuple[Site, ...]:
    """The sites of the graph of one rank: the same cuts, now of local tensors."""
    cuts = {s.name: tuple(local.nodes[node] for node in s.cut) for s in sites if s.cut}
    regions = dead_regions(local.graph_module.graph, cuts)
    found = []
    for site in sites:
        cut, region = cuts.get(site.name, ()), regions.get(site.name, ())
        found.append(
            replace(
                site,
                cut=cut,
                region=region,
                ends=tuple(local.nodes[node] for node in site.ends) if cut else (),
                cache_bytes=sum(ir.num_bytes(node) for node in cut),
                flops=count_flops(region) if cut else site.flops,
            )
        )
    return tuple(found)
