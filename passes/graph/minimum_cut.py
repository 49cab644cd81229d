"""Minimum cut: the nodes of least total size that separate two parts of a graph."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import fx

_START, _END = "start", "end"


@dataclass(frozen=True, eq=False)
class Cut:
    """Nodes that lie on every path from the starts to the ends.

    Attributes:
        nodes: the nodes, in the order in which their sizes were given.
        size: their total size.
        after: the nodes that come after the cut.
    """

    nodes: tuple[fx.Node, ...]
    size: int
    after: frozenset[fx.Node]


def minimum_cut(
    sizes: Mapping[fx.Node, int | None],
    edges: Iterable[tuple[fx.Node, fx.Node]],
    starts: Iterable[fx.Node],
    ends: Iterable[fx.Node],
) -> Cut | None:
    """Find the cut of least size. Among equal ones it is the cut nearest to the ends.

    Args:
        sizes: all nodes with the size of each; None for a node that the cut must not contain.
        edges: pairs of a node and one of its users.
        starts: where paths begin.
        ends: where paths end.

    Returns:
        The cut; None where some path has no node that the cut may contain.
    """
    number = {node: place for place, node in enumerate(sizes)}
    found = _minimum_cut(
        tuple(sizes.values()),
        tuple((number[source], number[user]) for source, user in edges),
        tuple(number[node] for node in starts),
        tuple(number[node] for node in ends),
    )
    if found is None:
        return None
    size, before, after = found
    nodes = list(sizes)
    return Cut(
        tuple(nodes[place] for place in before), size, frozenset(nodes[place] for place in after)
    )


@functools.lru_cache(maxsize=1024)
def _minimum_cut(
    sizes: tuple[int | None, ...],
    edges: tuple[tuple[int, int], ...],
    starts: tuple[int, ...],
    ends: tuple[int, ...],
) -> tuple[int, tuple[int, ...], tuple[int, ...]] | None:
    """Size of the cut, its nodes, and those after it, by number: equal blocks have equal cuts."""
    import networkx as nx  # costly to import

    network = nx.DiGraph()
    network.add_nodes_from((_START, _END))
    for node, num in enumerate(sizes):
        capacity = {} if num is None else {"capacity": num}
        network.add_edge((node, "in"), (node, "out"), **capacity)
    network.add_edges_from(((source, "out"), (user, "in")) for source, user in edges)
    network.add_edges_from((_START, (node, "in")) for node in starts)
    network.add_edges_from(((node, "out"), _END) for node in ends)
    try:
        # Of several minimum cuts networkx returns the one nearest to its sink.
        size, (before, after) = nx.minimum_cut(network, _START, _END)
    except nx.NetworkXUnbounded:
        return None
    nodes = range(len(sizes))
    cut = tuple(n for n in nodes if (n, "in") in before and (n, "out") in after)
    return size, cut, tuple(n for n in nodes if (n, "in") in after)
