"""What an op does to a shard of its operands: the form in which rules answer.

A rule takes a node and how its sharded operands are sharded, and answers with a ``Verdict`` where
every rank can compute its part of the result from its parts of the operands, or else with the
reason, in English, why it cannot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import fx

from pab_compile.passes.graph import ir

from .shard import Shard

Shards = Mapping[fx.Node, Shard]
"""How the operands that are sharded are; the others are replicated."""


@dataclass(frozen=True)
class Verdict:
    """An op that every rank computes on its part.

    Attributes:
        outputs: how each output is sharded; None where it is replicated.
        needs: replicated operands of which only a part is used, and which.
    """

    outputs: tuple[Shard | None, ...]
    needs: Mapping[fx.Node, Shard] = field(default_factory=dict)


Answer = Verdict | str


def same(shard: Shard) -> Verdict:
    """One output, sharded like the only operand that counts."""
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
    """What operands that broadcast against one another must bring for an output of this shard.

    Args:
        operands: the operands, aligned at their last dimension.
        shards: how they are sharded.
        shard: how the output is.
        rank: number of dimensions of the output.

    Returns:
        The part that is needed of every replicated operand that has the axis; a reason where two
        operands are sharded differently.
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
