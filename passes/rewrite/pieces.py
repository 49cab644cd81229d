"""Pieces: how a rewritten graph is cut for the inner compiler.

There are six sorts of pieces. Equal blocks give equal pieces, so compile time does not grow with
depth.

- A *branch* (the region of a site) is one piece. A branch of merged sites, which all compute
  together, is cut into *blocks* where it repeats (``passes.rewrite.repeats``), and nowhere else.
- *Glue* is one piece per section between branches. A node belongs to the first section in which all
  its inputs are known. A node that depends on no branch (per-layer modulation tables) sinks to the
  section that uses it first. Otherwise the first piece would grow with depth.
- A *demanded* piece is like glue, but only branches need it (``passes.rewrite.demand``). It runs
  only if one of them computes. It is cut where it repeats, too.
- A *prelude* is the same at every step of a generation (prompt projections, keys and values of
  cross-attention, rotary tables). It runs once per generation. There is one for each piece that
  alone uses its values, and one for the values that several pieces use.
- A *watched* piece is computed from tensors that Python code makes (``passes.rewrite.watched``). It
  runs again only if one of these has other values.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.outline import Outlined, copy_graph, outline
from pab_compile.passes.sites.hoisting import hoisted_nodes
from pab_compile.passes.sites.site import Site

from .broadcast import StepBranch, branches
from .demand import on_demand
from .repeats import cut_at_repeats, in_running_order
from .watched import watched_nodes

GLUE = "glue"
BLOCK = "block"
PRELUDE = "prelude"
DEMANDED = "demanded"
WATCHED = "watched"


_NOTES = {
    GLUE: "at every step",
    DEMANDED: "if a branch that reads it computes",
    PRELUDE: "once per generation and lane",
    WATCHED: "if a tensor that Python made differs",
    BLOCK: "with the branch",
}


class Piece(torch.nn.Module):
    """A section of glue, a prelude or a block in the cut graph. ``compute`` yields a tuple.

    Attributes:
        sort: ``glue``, ``demanded``, ``prelude``, ``watched``, or ``block`` (a part of a branch of
            merged sites).
        compute: the nodes of the piece as a graph module.
        note: when it runs, for dumps.
    """

    def __init__(self, sort: str, compute: fx.GraphModule) -> None:
        super().__init__()
        self.sort = sort
        self.compute = compute
        self.note = _NOTES[sort]

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the piece."""
        return self.compute(*inputs)


def cut_into_pieces(graph_module: fx.GraphModule, hoist: bool = True) -> fx.GraphModule:
    """Group all nodes outside the branches into preludes, sections of glue and demanded pieces.

    Args:
        graph_module: a graph with branches (``passes.rewrite.broadcast``); not modified.
        hoist: whether to make preludes and watched pieces.

    Returns:
        A graph module with only placeholders, ``call_module`` nodes and ``getitem``.
    """
    hoisted = hoisted_nodes(graph_module.graph) if hoist else set()
    watched = watched_nodes(graph_module.graph) if hoist else {}
    level = _levels(graph_module.graph, hoisted)
    groups: dict[fx.Node, str] = {
        node: f"{GLUE}_{level[node]}" for node in level if ir.is_plain_call(node)
    }
    groups |= _demanded(graph_module, hoisted.union(watched), level)
    groups |= {node: f"{WATCHED}_{number}" for node, number in watched.items()}
    for node, consumer in _consumers(graph_module.graph, hoisted, groups).items():
        groups[node] = f"{PRELUDE}_{consumer}" if consumer else PRELUDE

    def wrap(name: str, outlined: Outlined) -> Piece:
        return Piece(name.partition("_")[0], outlined.graph_module)

    cut = outline(graph_module, groups, wrap)
    for call, branch in branches(cut):
        if branch.site.parts:
            merged = StepBranch(branch.site, _cut_merged(branch), branch.starts)
            cut.add_submodule(str(call.target), merged)
    return cut


def _demanded(
    graph_module: fx.GraphModule, hoisted: set[fx.Node], level: Mapping[fx.Node, int]
) -> dict[fx.Node, str]:
    """The groups of the nodes that run on demand: by section, by who needs them, and by repeats."""
    found = branches(graph_module)
    names = {call: str(call.target) for call, _ in found}
    starts = {
        value: call.args[start.position]
        for call, branch in found
        for value in call.users
        if (start := branch.starts[int(value.args[1])]) is not None  # type: ignore[arg-type]
    }
    needed = on_demand(graph_module.graph, hoisted, names.get, starts)  # type: ignore[arg-type]
    rows: dict[tuple[int, frozenset[str]], dict[fx.Node, None]] = {}
    for node in needed:
        rows.setdefault((level[node], needed[node]), {})[node] = None
    parts = [part for _, branch in found for part in branch.site.parts]
    groups: dict[fx.Node, str] = {}
    for number, nodes in enumerate(rows.values()):
        calls = in_running_order(graph_module.graph, nodes)
        sites = _calls_of_sites(calls, parts)
        for index, piece in enumerate(cut_at_repeats(calls, sites)):
            name = f"{DEMANDED}_{number}_{index}"
            groups |= dict.fromkeys(calls[piece.start : piece.stop], name)
    return groups


def _cut_merged(branch: StepBranch) -> fx.GraphModule:
    """The graph of a branch of merged sites, cut where it repeats."""
    compute = copy_graph(branch.compute)
    calls = in_running_order(compute.graph)
    for earlier, node in itertools.pairwise(calls):
        earlier.append(node)
    groups = {
        node: f"{BLOCK}_{number}"
        for number, piece in enumerate(
            cut_at_repeats(calls, _calls_of_sites(calls, branch.site.parts))
        )
        for node in calls[piece.start : piece.stop]
    }
    return outline(compute, groups, lambda _, outlined: Piece(BLOCK, outlined.graph_module))


def _calls_of_sites(calls: Sequence[fx.Node], sites: Sequence[Site]) -> list[list[fx.Node]]:
    """The calls of every site among some calls. Branches are copies, so names tell."""
    named = {node.name: node for node in calls}
    return [[named[n.name] for n in site.region if n.name in named] for site in sites]


def _levels(graph: fx.Graph, hoisted: set[fx.Node]) -> dict[fx.Node, int]:
    """The number of its section of glue, for every node that is not hoisted or in a branch."""
    level: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node.op == "output" or node in hoisted:
            continue
        known = max((level.get(n, 0) for n in node.all_input_nodes), default=0)
        level[node] = known + 1 if ir.is_branch_value(node) else known
    early = [n for n in graph.nodes if level.get(n) == 0 and ir.is_plain_call(n)]
    for node in reversed(early):
        level[node] = min((level[user] for user in node.users if user in level), default=0)
    for node in early:
        if ir.is_getitem(node):
            level[node] = level[node.all_input_nodes[0]]
    return level


def _consumers(
    graph: fx.Graph, hoisted: set[fx.Node], groups: Mapping[fx.Node, str]
) -> dict[fx.Node, str]:
    """For every hoisted node the one piece that uses it, or ``""`` if several do."""
    consumers: dict[fx.Node, frozenset[str]] = {}
    for node in reversed(graph.nodes):
        if node not in hoisted:
            continue
        names: frozenset[str] = frozenset()
        for user in node.users:
            names |= consumers.get(user) or {groups.get(user) or str(user.target)}
        consumers[node] = names
    found = {n: next(iter(names)) if len(names) == 1 else "" for n, names in consumers.items()}
    for node in graph.nodes:
        if node in found and ir.is_getitem(node):
            found[node] = found[node.all_input_nodes[0]]
    return found
