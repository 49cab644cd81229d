"""Sends: what this rank sends in the collectives of a piece, and in those beside the graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.ops import is_collective
from pab_compile.passes.parallel.sends import Sends, sum_bytes
from pab_compile.passes.rewrite.broadcast import StepBranch
from pab_compile.passes.rewrite.pieces import Piece
from pab_compile.passes.sites.binding import Binding
from pab_compile.report.exchanges import OUTSIDE_OF_SITES, Exchanged, added_up

WEIGHTS = "weights"
"""The kind of gathers of weights."""
_NAMES = (
    ("all_to_all", "all-to-all"),
    ("all_gather", "all-gather"),
    ("reduce_scatter", "reduce-scatter"),
    ("all_reduce", "all-reduce"),
    ("broadcast", "broadcast"),
)


def exchanged_in(piece: StepBranch | Piece) -> tuple[Exchanged, ...]:
    """What this rank exchanges whenever a piece runs."""
    singles = piece.site.singles if isinstance(piece, StepBranch) else ()
    kind = " + ".join(dict.fromkeys(one.kind for one in singles))
    return added_up(
        _exchanged(node, ir.sends(node) or _own(node), kind) for node in _collectives(piece.compute)
    )


def _collectives(graph_module: fx.GraphModule) -> list[fx.Node]:
    found = []
    for node in graph_module.graph.nodes:
        if node.op == "call_module":
            inner = getattr(graph_module.get_submodule(str(node.target)), "compute", None)
            found += _collectives(inner) if isinstance(inner, fx.GraphModule) else []
        elif is_collective(node):
            found.append(node)
    return found


def own_exchange(node: fx.Node) -> tuple[int, int]:
    """What a collective sends that the model had before its tokens were shared.

    Returns:
        The bytes that this rank sends to the others, and the number of all these ranks.
    """
    sends = _own(node)
    return _exchanged(node, sends, "").sent_bytes, sends.size


def _own(node: fx.Node) -> Sends:
    """A collective that is no part of sharding, such as one of the model's own."""
    name: Any = node.kwargs.get("group_name", node.args[-1])
    group = dist.distributed_c10d._resolve_process_group(name)
    kind = WEIGHTS if ir.binding(node) == Binding.CONSTANT else ""
    return Sends("", group.rank(), group.size(), kind=kind)


def _exchanged(node: fx.Node, sends: Sends, kind: str) -> Exchanged:
    name = ir.op_name(node)
    how = next((how for start, how in _NAMES if name.startswith(start)), name)
    kind = sends.kind or kind or OUTSIDE_OF_SITES
    return Exchanged(kind, how, 1, _sent(node, how, sends), sends.among, sends.by_rank)


def _sent(node: fx.Node, how: str, sends: Sends) -> int:
    """Bytes that this rank sends to the others in a collective."""
    size, given = sends.size, sum(map(ir.num_bytes, node.all_input_nodes))
    if how == "all-to-all":
        stated: Any = node.args[2]
        are_known = bool(stated) and all(isinstance(number, int) for number in stated)
        sizes = stated if are_known else [1] * size  # equal parts
        return given * (sum(sizes) - sizes[sends.rank]) // max(sum(sizes), 1)
    if how == "all-gather":
        return given * (size - 1)
    if how == "reduce-scatter":
        return round(given * (size - 1) / size)
    if how == "broadcast":
        return given * (size - 1) if node.args[1] == sends.rank else 0
    return sum_bytes(given, size)


def at_any_size(exchanged: Sequence[Exchanged]) -> tuple[Exchanged, ...]:
    """What holds for inputs of other sizes too: of exchanges that are the model's own, weights.

    The graph of ranks that share a model has one size.
    """
    return tuple(row for row in exchanged if row.among or row.kind == WEIGHTS)


def sent_beside(
    kind: str, how: str, tensors: Sequence[torch.Tensor], receivers: int, among: str = ""
) -> Exchanged:
    """Tensors that ranks exchange beside the graphs.

    Args:
        kind: what they are.
        how: the collective.
        tensors: one for each collective.
        receivers: to how many ranks this one sends them; 0 if it receives them.
        among: what the ranks share.
    """
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return Exchanged(kind, how, len(tensors), num_bytes * receivers, among)
