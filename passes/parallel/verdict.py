"""Verdicts: what an op does to the shards of its operands. This is how rules answer.

A rule takes a node and the shards of its operands. If every rank can compute its part of the result
from its parts of the operands, the answer is a ``Verdict``. Otherwise it is the reason, in English.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import fx

from pab_compile.passes.graph import ir

from .shard import Shard

Shards = Mapping[fx.Node, Shard]
"""Sharded value -> its shard. All other values are replicated."""


@dataclass(frozen=True)
class Verdict:
    """An op that every rank computes on its part.

    Attributes:
        outputs: the shard of each output; None if it is replicated.
        needs: replicated operand -> the part that is used of it.
    """

    outputs: tuple[Shard | None, ...]
    needs: Mapping[fx.Node, Shard] = field(default_factory=dict)


Answer = Verdict | str


def same(shard: Shard) -> Verdict:
    """A verdict for one output."""
    return Verdict((shard,))


def first_operand(node: fx.Node) -> fx.Node:
    """The tensor that an op works on, its first."""
    found = node.args[0] if node.args else next(iter(node.kwargs.values()))
    found = found[0] if isinstance(found, (list, tuple)) else found
    return found if isinstance(found, fx.Node) else node.all_input_nodes[0]


def others(node: fx.Node, shards: Shards) -> list[fx.Node]:
    """Sharded operands besides the one that the op works on."""
    return [n for n in node.all_input_nodes if n in shards and n is not first_operand(node)]


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Sizes of the full tensor that a node yields."""
    return ir.shape(node) or ()


def wrap(dim: int, rank: int) -> int:
    """A dimension counted from the front."""
    return int(dim) % max(rank, 1)


def meet(
    operands: Iterable[fx.Node], shards: Shards, shard: Shard, rank: int
) -> dict[fx.Node, Shard] | str:
    """The parts that are needed of operands that broadcast, for an output of this shard.

    Args:
        operands: the operands, aligned at their last dimension.
        shards: the shards of the operands.
        shard: the shard of the output.
        rank: number of dimensions of the output.

    Returns:
        The part that is needed of every replicated operand with the axis. If two operands are
        sharded differently, the reason.
    """
    needs: dict[fx.Node, Shard] = {}
    for operand in operands:
        shape = shape_of(operand)
        at = shard.dim - rank + len(shape)
        mine = shards.get(operand)
        if mine is not None and mine != shard.at(at):
            return f"its operands are sharded differently ({operand.name})"
        if mine is None and at >= 0 and shape[at] != 1:
            needs[operand] = shard.at(at)
    return needs
