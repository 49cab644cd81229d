"""Rings: attention over all tokens by more ranks than it has heads.

Successive ranks share the heads. Those with the same heads form a ring: each has the queries, keys
and values of its part of the tokens, and passes keys and values on until every part has come by.
Four ranks, two heads::

    q, k, v: tokens/4 -> tokens/2, heads/2      among ranks 0 and 1, and among 2 and 3
    o, l = attention(q, k, v)                   l is the log-sum-exp of the scores of a row
    k, v = from the rank before                 0 <-> 2, 1 <-> 3
    o, l = merge(o, l, attention(q, k, v))
    o: tokens/2, heads/2 -> tokens/4

So no rank has all keys. With a single head nothing is switched, and all ranks form one ring.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from pab_compile.passes.axes.attention_call import AttentionCall, attention_call
from pab_compile.passes.graph import ir

from .shard import Ranks, Shard
from .verdict import Shards, shape_of


@dataclass(frozen=True)
class Ring:
    """Ranks in rings.

    Attributes:
        num_heads: successive ranks that share the heads.
        length: ranks of a ring.
    """

    num_heads: int
    length: int

    @property
    def name(self) -> str:
        """What the ranks share, in words."""
        ring = f"rings of {self.length}"
        return f"heads, in {ring}" if self.num_heads > 1 else ring

    def place(self, rank: int) -> int:
        """The place of a rank in its ring."""
        return rank // self.num_heads

    def following(self, rank: int, steps: int = 1) -> int:
        """The rank that follows another in its ring."""
        place = (self.place(rank) + steps) % self.length
        return place * self.num_heads + rank % self.num_heads

    def sharing(self, ranks: Ranks) -> Ranks:
        """The ranks that share the heads with this one."""
        before = self.place(ranks.rank) * self.num_heads
        after = ranks.size - before - self.num_heads
        mine = ranks.rank % self.num_heads
        return Ranks(self.num_heads, mine, ranks.group, before, after)

    def bounds(self, ranks: Ranks, num: int, place: int) -> tuple[int, int]:
        """First position and end of what one place of the ring has of an axis."""
        first = place * self.num_heads
        last = first + self.num_heads - 1
        return ranks.bounds(num, first)[0], ranks.bounds(num, last)[1]

    def part(self, shard: Shard, ranks: Ranks, place: int) -> Shard:
        """A shard of the tokens that one place of the ring has."""
        low, high = self.bounds(ranks, shard.size, place)
        return replace(shard, size=high - low)


@dataclass(frozen=True)
class PassedOn:
    """The purpose of a collective in which every rank passes a part on to the next in its ring.

    Attributes:
        ring: the ring.
        hop: 1 where ranks pass on their own part, 2 where they pass on that of the rank before.
        size: positions of the axis.
        row: elements of one position, with all heads.
        heads: number of heads.
    """

    ring: Ring
    hop: int
    size: int
    row: int
    heads: int

    def elements(self, sender: int, receiver: int, ranks: Ranks) -> int:
        """Elements that one rank sends to another."""
        if receiver != self.ring.following(sender):
            return 0
        place = self.ring.place(self.ring.following(sender, 1 - self.hop))
        low, high = self.ring.bounds(ranks, self.size, place)
        if self.ring.num_heads == 1:
            return (high - low) * self.row
        mine = self.ring.sharing(replace(ranks, rank=sender)).count(self.heads)
        return (high - low) * self.row // self.heads * mine


def ring_for(
    node: fx.Node, shards: Shards, num_ranks: int, length: int | None
) -> tuple[Ring, AttentionCall] | str:
    """The ring in which ranks can compute an attention, or why there is none.

    Args:
        node: the attention, on full tensors.
        shards: how its operands are sharded.
        num_ranks: number of ranks.
        length: ranks of a ring, if there are heads for it; None for as few as possible.
    """
    call = call_of(node)
    if call is None or ir.op_name(node) != "scaled_dot_product_attention":
        return "it is not in rings, since it is written out by hand or from another library"
    operands = (call.query, call.key, call.value)
    rank = len(shape_of(call.query))
    if any(len(shape_of(n)) != rank for n in operands) or rank not in (3, 4):
        return "it is not in rings, since its operands do not have three or four dimensions"
    if ir.argument(node, 5, "is_causal", False):
        return "it is not in rings, since it is causal along the axis"
    if any(n not in shards or shards[n].dim != call.tokens for n in operands):
        return "it is not in rings, since its queries, keys and values do not all have the axis"
    if shards[call.key] != shards[call.value]:
        return "it is not in rings, since its keys and values are sharded differently"
    outer = [shape_of(n)[: call.tokens] for n in operands]
    if outer[0] != outer[1] or outer[0] != outer[2]:
        return "it is not in rings, since its queries have more heads than its keys"
    if len({shape_of(n)[-1] for n in operands}) > 1:
        return "it is not in rings, since its values have another length than its keys"
    if why := _mask_is_against(call, shards) or _device_is_against(call):
        return why
    heads = 1 if call.heads is None else shape_of(call.query)[call.heads]
    most = min(heads, num_ranks // (length or 1))
    shared = max(num for num in range(1, most + 1) if num_ranks % num == 0)
    return Ring(shared, num_ranks // shared), call


def call_of(node: fx.Node) -> AttentionCall | None:
    """The operands of an attention op; their axes do not matter."""
    return attention_call(node, lambda n: ((),) * len(shape_of(n)))


def _mask_is_against(call: AttentionCall, shards: Shards) -> str:
    """Why the mask of an attention cannot be taken apart; ``""`` if it can."""
    if call.mask is None:
        return ""
    if call.mask in shards:
        return "it is not in rings, since its mask is sharded"
    lengths = [shards[n] for n in (call.query, call.key)]
    if any(shard.outer > 1 for shard in lengths):
        return "it is not in rings, since its mask has positions between those of a rank"
    return ""


def _device_is_against(call: AttentionCall) -> str:
    """Why no op of the device gives the log-sum-exp; ``""`` if one does."""
    value = ir.tensor(call.query)
    assert value is not None
    if value.device.type != "cuda":
        return ""
    if call.mask is not None:
        return "it is not in rings, since it has a mask, which must be aligned on this device"
    return "" if value.shape[-1] % 8 == 0 else "it is not in rings, since its heads are not aligned"


def elements_of_row(shape: Sequence[int], shard: Shard) -> int:
    """Elements of one position of the axis in a full tensor without replicated positions."""
    return math.prod(shape) // shape[shard.dim] * shard.outer * shard.inner


def gives_log_sum_exp(value: torch.Tensor) -> str:
    """The name of the aten op that computes an attention and its log-sum-exp."""
    if value.device.type != "cuda":
        return "_scaled_dot_product_flash_attention_for_cpu"
    is_narrow = value.dtype in (torch.float16, torch.bfloat16)
    kind = "flash" if is_narrow else "efficient"
    return f"_scaled_dot_product_{kind}_attention"
