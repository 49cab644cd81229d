"""Sites of a graph: token mixers with their regions, and residual branches without a mixer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import fx

from pab_compile.passes.axes.table import AxisTable
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.flops import count_flops
from pab_compile.passes.graph.origin import module_path, source_line
from pab_compile.passes.graph.walk import positions, results

from .binding import Binding
from .growth import Growth
from .mixer import Mixer
from .regions import RegionFinder, cut_of_growth, dead_regions
from .residual import Branch, cut_of, find_branches
from .site import Site


def find_sites(
    graph: fx.Graph, mixers: Sequence[Mixer], axes: AxisTable, cut: str
) -> tuple[Site, ...]:
    """Find every site of a graph, in model order.

    Args:
        graph: a captured graph with binding times.
        mixers: its token mixers (``passes.sites.classify``).
        axes: its axes.
        cut: ``attention`` (before the gate), ``gated`` (after it) or ``branch`` (the whole residual
            branch that holds the attention).

    Returns:
        Sites whose regions are disjoint. A site that cannot be broadcast has no cut, and its reason
        says why.
    """
    latent = [m for m in mixers if ir.binding(m.nodes[-1]) == Binding.LATENT]
    finder = RegionFinder(graph, [m.nodes for m in latent], [m.kind for m in latent], cut)
    growths = finder.grow()
    drafts = [_attention_site([latent[i] for i in growth.mixers], growth) for growth in growths]
    drafts += [_bound_early_site(m) for m in mixers if m not in latent]
    mixer_nodes = frozenset(node for mixer in mixers for node in mixer.nodes)
    held = {node for growth in growths if growth.is_branch for node in growth.inside}
    found = [b for b in find_branches(graph, mixer_nodes) if not held.issuperset(b.ends)]
    drafts += [_mlp_site(b, axes, cut) for b in found]
    order = positions(graph)
    anchored = sorted(drafts, key=lambda draft: order[draft.region[-1]])
    named = _with_unique_names(anchored)
    cuts = {site.name: site.cut for site in named if site.cut}
    regions = dead_regions(graph, cuts)
    done = [with_region(site, regions.get(site.name, ())) for site in named]
    shared = {growth.nodes[-1]: growth for growth in growths if growth.holds_more}
    wholes = {site.name: shared[site.region[-1]] for site in named if site.region[-1] in shared}
    return _with_what_they_hold(graph, done, cuts, wholes)


def _with_what_they_hold(
    graph: fx.Graph,
    sites: Sequence[Site],
    cuts: Mapping[str, Sequence[fx.Node]],
    wholes: Mapping[str, Growth],
) -> tuple[Site, ...]:
    """Say of whole branches what they hold beside the mixer, in FLOPs more than it alone has."""
    alone = {name: results(growth.alone) for name, growth in wholes.items()}
    regions = dead_regions(graph, {**cuts, **alone}) if wholes else {}
    found = []
    for site in sites:
        more = site.flops - count_flops(regions[site.name]) if site.name in wholes else 0
        said = f"holds also: an MLP of {more:,} FLOPs, with the projections that both share"
        said = "; ".join(filter(None, (site.branch, said)))
        found.append(replace(site, branch=said) if more and site.can_broadcast else site)
    return tuple(found)


def _attention_site(mixers: Sequence[Mixer], growth: Growth) -> Site:
    first = mixers[0]
    kinds = tuple(dict.fromkeys(mixer.kind for mixer in mixers))
    reason = "; ".join(dict.fromkeys(mixer.reason for mixer in mixers))
    cut = cut_of_growth(growth)
    if not cut:
        reason += "; not broadcast: no tensor separates it from the rest of the graph"
    return Site(
        name="",
        kind=first.kind,
        mechanism=first.mechanism,
        module=_site_path(first.nodes[-1], growth.nodes),
        query_axes=first.query_axes,
        key_axes=first.key_axes,
        cut=cut,
        region=growth.nodes[-1:],
        cache_bytes=0,
        flops=0,
        reason=reason,
        branch=_about_branch(growth, kinds),
        other_kinds=kinds[1:],
        ends=growth.frontier,
    )


def _about_branch(growth: Growth, kinds: Sequence[str]) -> str:
    if growth.refused:
        return f"its branch is not one site: {growth.refused}"
    several = f"holds attentions of several kinds: {', '.join(kinds)}"
    return f"{several}; it is reused where the plan reuses all of them" if kinds[1:] else ""


def _bound_early_site(mixer: Mixer) -> Site:
    once = ir.binding(mixer.nodes[-1]) <= Binding.PROMPT
    when = "computed once per generation" if once else "computed at every step"
    if ir.is_made(mixer.nodes[-1]):
        when = "computed again only if Python makes another tensor"
    return Site(
        name="",
        kind=mixer.kind,
        mechanism=mixer.mechanism,
        module=module_path(mixer.nodes[-1]),
        query_axes=mixer.query_axes,
        key_axes=mixer.key_axes,
        cut=(),
        region=mixer.nodes[-1:],
        cache_bytes=0,
        flops=count_flops(mixer.nodes),
        reason=f"{mixer.reason}; not broadcast: it does not read the latents, so it is {when}",
    )


def _mlp_site(branch: Branch, axes: AxisTable, cut: str) -> Site:
    cached = cut_of(branch, cut)
    node = cached[0]
    path = module_path(branch.last_contraction)
    tokens = tuple(name for dim in range(1, _rank(node) - 1) for name in axes.roles(node, dim))
    return Site(
        name="",
        kind="mlp",
        mechanism="mlp",
        module=path,
        query_axes=tokens,
        key_axes=(),
        cut=cached,
        region=branch.ends[-1:],
        cache_bytes=0,
        flops=0,
        reason=f"residual branch without a token mixer, at {source_line(branch.ends[-1])}",
        ends=cached if cut == "attention" else branch.ends,
    )


def _rank(node: fx.Node) -> int:
    return len(ir.shape(node) or ())


def _site_path(mixer: fx.Node, nodes: Iterable[fx.Node]) -> str:
    """Module path of the mixer, or of the first op after it that has one."""
    paths = (module_path(node) for node in (mixer, *nodes))
    return next((path for path in paths if path), "")


def _with_unique_names(sites: Sequence[Site]) -> list[Site]:
    """Name sites by path. Repeated paths get the kind as well, and repeats of both a number."""
    paths = Counter(site.module for site in sites)
    wanted = [
        site.module if site.module and paths[site.module] == 1 else _with_kind(site)
        for site in sites
    ]
    total, seen = Counter(wanted), Counter[str]()
    named = []
    for site, name in zip(sites, wanted, strict=True):
        named.append(replace(site, name=name if total[name] == 1 else f"{name}#{seen[name]}"))
        seen[name] += 1
    return named


def _with_kind(site: Site) -> str:
    return f"{site.module}:{site.kind}" if site.module else site.kind


def with_region(site: Site, region: tuple[fx.Node, ...]) -> Site:
    """A site with its region, cache bytes and operations. Without a region it gets no cut."""
    if not site.cut:
        return replace(site, region=())
    if not region:
        reason = f"{site.reason}; not broadcast: its outputs feed one another through the graph"
        return replace(site, cut=(), region=(), reason=reason)
    effects = dict.fromkeys(ir.op_name(node) for node in region if ir.has_effect(node))
    if effects:
        held = ", ".join(effects)
        reason = f"{site.reason}; not broadcast: it must not be left out, since it holds {held}"
        return replace(site, cut=(), region=(), reason=reason)
    return measured(replace(site, region=region))


def measured(site: Site) -> Site:
    """A site with its cache bytes and operations, counted at the sizes that its graph has now."""
    if not site.cut:
        return site
    parts = tuple(map(measured, site.parts))
    kept = sum(_kept_bytes(node, site) for node in site.cut)
    return replace(site, parts=parts, cache_bytes=kept, flops=count_flops(site.region))


def _kept_bytes(node: fx.Node, site: Site) -> int:
    """Bytes that are cached of a value. The difference of a stretch may take less than its end."""
    num_bytes, start, end = ir.num_bytes(node), site.starts.get(node), ir.tensor(node)
    if start is None or end is None:
        return num_bytes
    return num_bytes // end.element_size() * start.dtype.itemsize
