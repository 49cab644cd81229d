"""Demand: which branches need a value. It is not computed on a step that reuses all of them.

Two branches may need one value, so that it is in the region of neither::

    %h = linear(%x, ...)        # needed by %a and %b
    %a = branch a(%h, ...)
    %b = branch b(%h, ...)

If a step reuses both branches, nothing needs ``%h``. The same is true of a stream of tokens that
only attentions read.

A part of the graph runs on demand if it contains a contraction of values that depend on the
latents, or of a timestep per token, or if it gathers weights of other ranks. Smaller parts run at
every step, since more pieces would cost more than they save.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.flops import node_flops
from pab_compile.passes.graph.groups import Groups
from pab_compile.passes.graph.ops import is_collective
from pab_compile.passes.sites.binding import Binding
from pab_compile.passes.sites.hoisting import hoisted_nodes
from pab_compile.passes.sites.site import Site

from .watched import has_many_rows, watched_nodes

Needed = Mapping[fx.Node, frozenset[str]]
_Names = frozenset[str] | None  # None: at every step


def on_demand(
    graph: fx.Graph,
    hoisted: Collection[fx.Node],
    branch_of: Callable[[fx.Node], str | None],
    starts: Mapping[fx.Node, fx.Node],
) -> Needed:
    """The nodes outside the branches that run on demand, each with the branches that need it.

    Args:
        graph: a graph with binding times.
        hoisted: nodes that run once per generation, or only if Python made other tensors.
        branch_of: node -> name of the branch that it belongs to, or None.
        starts: value of a branch -> what is added to the cached difference to load it.
    """
    needed = _needed(graph, branch_of, starts)
    inside = [n for n in needed if n not in hoisted and ir.is_plain_call(n)]
    known = set(inside)
    parts = Groups(inside)
    for node in inside:
        parts.merge([node, *(n for n in node.all_input_nodes if n in known)])
    large = {
        parts.leader(node)
        for node in inside
        if gathers_weights(node) or (node_flops(node) and _is_of_tokens(node))
    }
    return {node: needed[node] for node in inside if parts.leader(node) in large}


def gathers_weights(node: fx.Node) -> bool:
    """Whether the op gathers weights of other ranks."""
    return is_collective(node) and ir.binding(node) == Binding.CONSTANT


def _is_of_tokens(node: fx.Node) -> bool:
    """Whether a value belongs to tokens. One vector per batch row, as of a timestep, does not."""
    if ir.binding(node) == Binding.LATENT:
        return True
    return has_many_rows(node)


def _needed(
    graph: fx.Graph,
    branch_of: Callable[[fx.Node], str | None],
    starts: Mapping[fx.Node, fx.Node],
) -> Needed:
    """The branches that need a value, for every node outside them that nothing else needs."""
    found: dict[fx.Node, _Names] = {}
    to_load: dict[fx.Node, _Names] = {}
    for node in reversed(graph.nodes):
        # What nothing reads runs at every step with the glue.
        is_root = not node.users and node not in to_load
        is_root |= node.op == "call_function" and ir.has_effect(node)
        names: _Names = None if is_root else to_load.get(node, frozenset())
        for user in node.users:
            branch = branch_of(user)
            names = _union(names, found[user] if branch is None else frozenset([branch]))
        found[node] = names
        if node in starts:  # it is needed wherever the value is, and to compute the difference
            branch = branch_of(node)
            names = _union(names, frozenset() if branch is None else frozenset([branch]))
            to_load[starts[node]] = _union(to_load.get(starts[node], frozenset()), names)
    for node in graph.nodes:  # a multi-output op and all its values go together
        if ir.is_getitem(node) and branch_of(node) is None:
            found[node] = found[node.all_input_nodes[0]]
    return {n: found[n] for n in graph.nodes if found[n] and branch_of(n) is None}  # type: ignore[misc]


def _union(one: _Names, other: _Names) -> _Names:
    if one is None or other is None:
        return None
    if one >= other:  # nearly always, and the sets are many
        return one
    return other if other >= one else one | other


def sites_of_calls(graph: fx.Graph, sites: Sequence[Site]) -> Needed:
    """The calls that do not run at every step, each with the sites that it runs for.

    A call runs if one of these sites computes. If it runs for none, it runs once per generation, or
    again only if Python made other tensors.

    Args:
        graph: a graph with binding times, before it is cut into branches.
        sites: the sites that become branches.
    """
    branch = {node: site.name for site in sites if site.can_broadcast for node in site.region}
    starts = {end: start.node for site in sites for end, start in site.starts.items()}
    early = {*hoisted_nodes(graph), *watched_nodes(graph, lambda node: node not in branch)}
    hoisted = dict.fromkeys(early, frozenset[str]())
    inside = {node: frozenset([name]) for node, name in branch.items()}
    return {**hoisted, **inside, **on_demand(graph, hoisted, branch.get, starts)}
