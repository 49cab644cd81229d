"""Walks along the edges of a graph. Each function only reads the graph.

In this graph::

    %q = linear(%x, %w)
    %h = _to_copy(%q)
    %o = mul(%h, %gate)
    %y = add(%x, %o)

the walks give::

    feeding([%o])            {%x, %w, %q, %h, %gate}
    fed_by([%q])             {%h, %o, %y}
    look_through(%h, CASTS)  %q
    operands([%q, %h, %o])   [%x, %w, %gate]
    results([%q, %h, %o])    [%o]
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping

from torch import fx

from . import ir

Step = Callable[[fx.Node], Iterable[fx.Node]]


def positions(graph: fx.Graph) -> dict[fx.Node, int]:
    """Every node of a graph with its position, in graph order."""
    return {node: index for index, node in enumerate(graph.nodes)}


def in_order(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """Nodes of one graph in graph order, each once."""
    return sorted(dict.fromkeys(nodes))  # a node is less than those behind it


def reached(starts: Iterable[fx.Node], step: Step) -> Iterator[fx.Node]:
    """The nodes that repeated steps lead to, each once. A start counts only if a step leads to it.

    Args:
        starts: where the walk begins.
        step: node -> the next nodes.
    """
    pending, seen = list(starts), set[fx.Node]()
    while pending:
        for node in step(pending.pop()):
            if node not in seen:
                seen.add(node)
                pending.append(node)
                yield node


def feeding(nodes: Iterable[fx.Node], within: Collection[fx.Node] | None = None) -> set[fx.Node]:
    """All that some nodes are computed from.

    Args:
        nodes: the nodes. One of them is in the result only if it feeds another.
        within: the walk stays among these nodes; None for the whole graph.
    """

    def sources(node: fx.Node) -> Iterable[fx.Node]:
        return [n for n in node.all_input_nodes if within is None or n in within]

    return set(reached(nodes, sources))


class Feeding:
    """What each of several groups of nodes is computed from, found in one walk for all of them.

    Args:
        graph: the graph.
        groups: nodes of it.
    """

    def __init__(self, graph: fx.Graph, groups: Iterable[Iterable[fx.Node]]) -> None:
        member: dict[fx.Node, int] = {}  # node -> its groups, one bit each
        for number, group in enumerate(groups):
            for node in group:
                member[node] = member.get(node, 0) | 1 << number
        self._feeds: dict[fx.Node, int] = {}
        for node in reversed(graph.nodes):
            feeds = 0
            for user in node.users:
                feeds |= self._feeds[user] | member.get(user, 0)
            self._feeds[node] = feeds

    def of(self, number: int) -> Container[fx.Node]:
        """What ``feeding`` gives for a group, to ask whether a node is in it."""
        return _Feeding(self._feeds, 1 << number)


class _Feeding(Container[fx.Node]):
    def __init__(self, feeds: Mapping[fx.Node, int], bit: int) -> None:
        self._feeds = feeds
        self._bit = bit

    def __contains__(self, node: object) -> bool:
        return bool(self._feeds.get(node, 0) & self._bit)  # type: ignore[call-overload]


def fed_by(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """All that is computed from some nodes. One of them counts only if it is fed by another."""
    return set(reached(nodes, lambda node: node.users))


def chain(start: fx.Node, step: Callable[[fx.Node], fx.Node | None]) -> Iterator[fx.Node]:
    """A node, the node that a step leads to, and so on, until a step leads nowhere."""
    node: fx.Node | None = start
    while node is not None:
        yield node
        node = step(node)


def look_through(node: fx.Node, ops: Collection[str]) -> fx.Node:
    """The value that a node casts, copies or views.

    Args:
        node: any node. If it is none of these ops, it is the result itself.
        ops: short names of the ops to look through, such as ``ops.CASTS``. Each has one tensor as
            its operand.
    """

    def source(node: fx.Node) -> fx.Node | None:
        return node.all_input_nodes[0] if ir.is_call(node, *ops) else None

    *_, last = chain(node, source)
    return last


def operands(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """The values that a group of nodes reads from outside, each once, as the nodes read them."""
    inside = dict.fromkeys(nodes)
    read = dict.fromkeys(n for node in inside for n in node.all_input_nodes)
    return [node for node in read if node not in inside]


def results(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """The nodes of a group that are read outside of it, in the order of the group."""
    inside = dict.fromkeys(nodes)
    return [node for node in inside if any(user not in inside for user in node.users)]


def picks(node: fx.Node) -> list[fx.Node]:
    """The nodes that each pick one output of an op with several."""
    return [user for user in node.users if ir.is_getitem(user)]
