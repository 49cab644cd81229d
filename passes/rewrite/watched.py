"""Watched: what is computed from tensors that Python code makes between two graphs.

Such tensors may differ at every step, but most of them do not: positions, masks, tables of rotary
embeddings. What is computed from them, from weights and from per-prompt inputs alone is kept, with
copies of the tensors. It is computed again if one of them has other values::

    %table = placeholder                 # Python made it
    %keys = linear(%prompt, ...)         # once per generation
    %rotated = mul(%keys, %table)        # watched, together with
    %text = linear(%rotated, ...)        # what it feeds

The values are compared at every step, which synchronises an accelerator. So only parts of the graph
that contain a contraction of tokens are watched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.flops import node_flops
from pab_compile.passes.graph.groups import Groups
from pab_compile.passes.sites.binding import Binding, made_by_python


def watched_nodes(
    graph: fx.Graph, is_outside: Callable[[fx.Node], bool] = lambda _: True
) -> Mapping[fx.Node, int]:
    """The calls that run again only if Python made other tensors, each with its part of the graph.

    Args:
        graph: a graph with binding times.
        is_outside: whether a node belongs to no branch.
    """
    made = made_by_python(graph, ir.is_made)
    inside = [n for n in graph.nodes if n in made and n.op != "placeholder" and is_outside(n)]
    parts = Groups(inside)
    known = set(inside)
    for node in inside:
        parts.merge([node, *(n for n in node.all_input_nodes if n in known)])
    large = [parts.leader(n) for n in inside if node_flops(n) and has_many_rows(n)]
    number = {leader: index for index, leader in enumerate(dict.fromkeys(large))}
    return {n: number[parts.leader(n)] for n in inside if parts.leader(n) in number}


def has_many_rows(node: fx.Node) -> bool:
    """Whether a value that depends on the step has a vector per token, not one per batch row."""
    rows = (ir.shape(node) or ())[1:-1]
    return ir.binding(node) == Binding.STEP and any(num > 1 for num in rows)
