"""Overlap: a piece computes while its collectives run.

Every collective starts as soon as its operand is ready. Its wait comes after all calls that the
next collective needs. Attention over all tokens, before and after::

    %q = linear(%x, %w_q)               %q = linear(%x, %w_q)
    %q_sent = all_to_all(%q)            %q_sent = all_to_all(%q)
    %q_heads = wait(%q_sent)            %k = linear(%x, %w_k)      # while q is sent
    %k = linear(%x, %w_k)               %k_sent = all_to_all(%k)
    %k_sent = all_to_all(%k)            %q_heads = wait(%q_sent)
    %k_heads = wait(%k_sent)            %k_heads = wait(%k_sent)
    attention(%q_heads, %k_heads, ...)  attention(%q_heads, %k_heads, ...)

Only the order of the calls changes. Collectives keep their order, so that they match those of the
other ranks. Ops with an effect keep their order too.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from pab_compile.passes.errors import InvariantError
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.ops import is_collective, is_wait
from pab_compile.passes.graph.walk import positions
from pab_compile.passes.program import Program
from pab_compile.passes.rewrite.broadcast import StepBranch
from pab_compile.passes.rewrite.pieces import Piece


@dataclass(frozen=True)
class Overlap:
    """Reorder the calls inside every piece. Runs after ``CutIntoPieces``."""

    name: str = "overlap"

    def __call__(self, program: Program) -> int:
        """Reorder. Returns by how many the calls increase that run during a collective."""
        return sum(overlap(piece) for piece in _pieces(program.graph_module))


def overlap(piece: fx.GraphModule) -> int:
    """Reorder the calls of one piece. Returns how many calls now run during a collective.

    Args:
        piece: changed in place. One without collectives stays as it is.

    Raises:
        InvariantError: the collectives are not in their old order any more.
    """
    graph = piece.graph
    before = in_flight(graph)
    if not before:
        return 0
    order = _schedule(graph)
    for earlier, node in itertools.pairwise(order):
        earlier.append(node)
    graph.lint()
    piece.recompile()
    after = in_flight(graph)
    if list(after) != list(before) or len(order) != len(graph.nodes):
        raise InvariantError("overlapping brought collectives out of order, or lost a call")
    return sum(after.values()) - sum(before.values())


def in_flight(graph: fx.Graph) -> dict[fx.Node, int]:
    """Collective -> number of calls between its start and its wait, without views and waits."""
    found: dict[fx.Node, int] = {}
    flying: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if is_collective(node):
            found[node] = 0
            flying[node] = None
        elif is_wait(node):
            flying.pop(node.all_input_nodes[0], None)
        elif node.op == "call_function" and not _is_free(node):
            for started in flying:
                found[started] += 1
    return found


def _is_free(node: fx.Node) -> bool:
    return ir.is_getitem(node) or ir.is_call(
        node, "view", "reshape", "permute", "transpose", "slice", "unsqueeze", "split_with_sizes"
    )


def _pieces(graph_module: fx.GraphModule) -> Iterator[fx.GraphModule]:
    for node in graph_module.graph.find_nodes(op="call_module"):
        module = graph_module.get_submodule(str(node.target))
        assert isinstance(module, (StepBranch, Piece))
        blocks = [m for m in module.compute.children() if isinstance(m, Piece)]
        yield from (block.compute for block in blocks) if blocks else (module.compute,)


def _schedule(graph: fx.Graph) -> list[fx.Node]:
    """The new order: list scheduling. Calls that the next collective needs first, waits last."""
    nodes = list(graph.nodes)
    index = positions(graph)
    before: dict[fx.Node, list[fx.Node]] = {node: list(node.all_input_nodes) for node in nodes}
    last: fx.Node | None = None
    for node in nodes:
        if is_collective(node) or (_must_keep_order(node) and not is_wait(node)):
            if last is not None:
                before[node].append(last)
            last = node
    after: dict[fx.Node, list[fx.Node]] = {node: [] for node in nodes}
    for node, sources in before.items():
        for source in dict.fromkeys(sources):
            after[source].append(node)
    goal = _goals(nodes, index)
    missing = {node: len(dict.fromkeys(sources)) for node, sources in before.items()}
    ready: list[tuple[tuple[int, int, int], int]] = []

    def offer(node: fx.Node) -> None:
        # A graph needs its inputs first and its output last. Collectives start early.
        ends = {"placeholder": -2, "get_attr": -2, "output": len(nodes) + 1}
        first = ends.get(node.op, -1 if is_collective(node) else goal[node])
        waits = int(is_wait(node))
        heapq.heappush(ready, ((first, waits, index[node]), index[node]))

    for node in nodes:
        if not missing[node]:
            offer(node)
    order: list[fx.Node] = []
    while ready:
        node = nodes[heapq.heappop(ready)[1]]
        order.append(node)
        for user in after[node]:
            missing[user] -= 1
            if not missing[user]:
                offer(user)
    return order


def _must_keep_order(node: fx.Node) -> bool:
    return node.op == "call_function" and ir.must_stay(node)


def _goals(nodes: list[fx.Node], index: dict[fx.Node, int]) -> dict[fx.Node, int]:
    """Node -> position of the first collective that needs it, or the end."""
    goal: dict[fx.Node, int] = {}
    for node in reversed(nodes):
        needed = [index[user] if is_collective(user) else goal[user] for user in node.users]
        goal[node] = min(needed, default=len(nodes))
    return goal
