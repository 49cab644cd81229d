"""Hoisting: calls whose value is the same at every step of a generation, and is computed once."""

from __future__ import annotations

from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.ops import CASTS, PARTS, SPLITS, VIEWS

from .binding import Binding

# Views, casts and gathers of weights stay where they are used.
# A stored result would be a second copy of the weights.
_GATHERS = frozenset({"all_gather_into_tensor", "wait_tensor"})
_FREE_OPS = VIEWS | PARTS | SPLITS | CASTS | _GATHERS | {"expand", "unbind", "getitem", "alias"}


def hoisted_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Calls to make once per generation: they read only weights and per-prompt inputs.

    Args:
        graph: a captured or rewritten graph with binding times. The result never contains values
            that a branch returns.
    """
    free: set[fx.Node] = set()
    hoisted: set[fx.Node] = set()
    for node in graph.nodes:
        if ir.binding(node) == Binding.CONSTANT and (
            node.op in ("placeholder", "get_attr")
            or (ir.op_name(node) in _FREE_OPS and all(n in free for n in node.all_input_nodes))
        ):
            free.add(node)
        elif (
            ir.is_plain_call(node)
            and ir.binding(node) in (Binding.CONSTANT, Binding.PROMPT)
            and not ir.has_effect(node)
        ):
            hoisted.add(node)
    for node in reversed(graph.nodes):
        if node in free and ir.is_plain_call(node) and any(user in hoisted for user in node.users):
            hoisted.add(node)
    for node in graph.nodes:  # a multi-output op and all its values go together
        if ir.is_getitem(node) and node.all_input_nodes[0] in hoisted:
            hoisted.add(node)
    return hoisted
