"""Emission of attention in rings: passing keys and values on, and merging what comes of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from pab_compile.passes.graph import ir

from .emit import Emitter
from .ring import PassedOn, Ring, call_of, elements_of_row, gives_log_sum_exp
from .shard import Shard
from .verdict import Shards, shape_of

_aten = torch.ops.aten
_c10d = torch.ops._c10d_functional
_NOTHING = -1e30  # log-sum-exp of a row that sees none of some keys


def emit_ring(
    emitter: Emitter,
    node: fx.Node,
    ring: Ring,
    shards: Shards,
    local: Mapping[fx.Node, fx.Node],
) -> fx.Node:
    """Append what a rank computes and exchanges for an attention. Returns its part of the output.

    Args:
        emitter: appends to the graph of the rank.
        node: the attention in the graph of one device.
        ring: the ring of the rank.
        shards: how the operands are sharded.
        local: operand -> this rank's part of it, or all of it if it is replicated.
    """
    return _RingEmitter(emitter, node, ring, shards).add(local)


class _RingEmitter:
    def __init__(self, emitter: Emitter, node: fx.Node, ring: Ring, shards: Shards) -> None:
        self._to = emitter
        self._node = node
        self._ring = ring
        self._shards = shards
        call = call_of(node)
        assert call is not None
        self._call = call
        self._place = ring.place(emitter.ranks.rank)
        is_even = shards[call.query].size % emitter.ranks.size == 0
        self._among = emitter.among(ring.sharing(emitter.ranks), is_even)
        num = 1 if call.heads is None else shape_of(call.query)[call.heads]
        self._heads = Shard(call.heads or 0, num)
        self._is_switched = ring.num_heads > 1

    def add(self, local: Mapping[fx.Node, fx.Node]) -> fx.Node:
        call, ring = self._call, self._ring
        operands = (call.query, call.key, call.value)
        mine = {n: self._to_heads(n, local[n]) for n in dict.fromkeys(operands)}
        query, key, value = (mine[n] for n in operands)
        mask = None if call.mask is None else local[call.mask]
        found, weight = self._attend(query, key, value, self._columns(mask, self._place, True))
        found = self._to_dtype(found, torch.float32)
        carried = {n: self._bare(n, mine[n]) for n in dict.fromkeys((call.key, call.value))}
        for hop in range(1, ring.length):
            carried = {n: self._passed_on(n, x, hop) for n, x in carried.items()}
            place = (self._place - hop) % ring.length
            part = self._columns(mask, place, False)
            more, its = self._attend(query, carried[call.key], carried[call.value], part)
            found, weight = self._merged(found, weight, more, its)
        tensor = ir.tensor(self._node)
        assert tensor is not None
        return self._to_tokens(self._to_dtype(found, tensor.dtype))

    def _to_heads(self, node: fx.Node, x: fx.Node) -> fx.Node:
        """All heads of this rank's tokens -> some heads of the tokens of its place."""
        if not self._is_switched:
            return x
        source = self._part(node)
        shape = self._full_at_place(node)
        return self._among.switch(x, source, self._heads, self._node, shape)

    def _to_tokens(self, x: fx.Node) -> fx.Node:
        if not self._is_switched:
            return x
        query = self._call.query
        shape = (*self._full_at_place(query)[:-1], shape_of(self._node)[-1])
        return self._among.switch(x, self._heads, self._part(query), self._node, shape)

    def _part(self, node: fx.Node) -> Shard:
        return self._ring.part(self._shards[node], self._to.ranks, self._place)

    def _full_at_place(self, node: fx.Node) -> tuple[int, ...]:
        shape, dim = shape_of(node), self._call.tokens
        return (*shape[:dim], self._part(node).full, *shape[dim + 1 :])

    def _bare(self, node: fx.Node, x: fx.Node) -> fx.Node:
        """Keys or values without those that every rank has."""
        part = self._part(node)
        stop = part.full - part.after
        return self._to.slice(x, part.dim, part.before, stop, self._node)

    def _passed_on(self, node: fx.Node, x: fx.Node, hop: int) -> fx.Node:
        """What the rank before passes on, while this rank passes on what it has."""
        to, ring, ranks = self._to, self._ring, self._to.ranks
        shard = self._shards[node]
        row = elements_of_row(shape_of(node), shard)
        purpose = PassedOn(ring, hop, shard.size, row, self._heads.size)
        sent, received = (
            [purpose.elements(*pair, ranks) for pair in pairs]
            for pairs in (
                [(ranks.rank, other) for other in range(ranks.size)],
                [(other, ranks.rank) for other in range(ranks.size)],
            )
        )
        flat = to.reshape(x, (-1,), self._node)
        got = to.exchanged(flat, received, sent, purpose, self._node)
        shape = list(shape_of(x))
        place = (self._place - hop) % ring.length
        part = ring.part(shard, ranks, place)
        shape[part.dim] = part.sharded
        return to.reshape(got, shape, self._node)

    def _attend(
        self, query: fx.Node, key: fx.Node, value: fx.Node, mask: fx.Node | None
    ) -> tuple[fx.Node, fx.Node]:
        """Attention to some keys, and the log-sum-exp of its scores (one number per row)."""
        to, node = self._to, self._node
        tensor = ir.tensor(self._call.query)
        assert tensor is not None
        op = getattr(_aten, gives_log_sum_exp(tensor)).default
        scale = ir.argument(node, 6, "scale")
        operands = [self._with_heads(x) for x in (query, key, value)]
        if "efficient" in str(op):
            several = to.call(op, *operands, None, True, like=node, scale=scale)
        elif "for_cpu" in str(op):
            wide = None if mask is None else self._expanded(mask, operands[0], operands[1])
            several = to.call(op, *operands, like=node, attn_mask=wide, scale=scale)
        else:
            several = to.call(op, *operands, like=node, scale=scale)
        found, weight = (to.pick(several, index, node) for index in range(2))
        rows = shape_of(query)[self._call.tokens]
        weight = to.slice(weight, 2, 0, rows, node)  # some kernels pad it
        if mask is not None:
            sees = to.call(_aten.amax.default, mask, [-1], like=node)
            blind = to.call(_aten.eq.Scalar, sees, float("-inf"), like=node)
            weight = to.call(_aten.masked_fill.Scalar, weight, blind, _NOTHING, like=node)
        weight = to.call(_aten.unsqueeze.default, weight, -1, like=node)
        if len(shape_of(query)) == 3:
            found = to.call(_aten.squeeze.dim, found, 1, like=node)
            weight = to.call(_aten.squeeze.dim, weight, 1, like=node)
        return found, weight

    def _merged(
        self, first: fx.Node, weight: fx.Node, other: fx.Node, its: fx.Node
    ) -> tuple[fx.Node, fx.Node]:
        """The attention to two sets of keys, and its log-sum-exp."""
        to, node = self._to, self._node
        gap = to.call(_aten.sub.Tensor, its, weight, like=node)
        share = to.call(_aten.sigmoid.default, gap, like=node)
        other = self._to_dtype(other, torch.float32)
        difference = to.call(_aten.sub.Tensor, other, first, like=node)
        moved = to.call(_aten.mul.Tensor, difference, share, like=node)
        found = to.call(_aten.add.Tensor, first, moved, like=node)
        return found, to.call(_aten.logaddexp.default, weight, its, like=node)

    def _columns(self, mask: fx.Node | None, place: int, with_all: bool) -> fx.Node | None:
        """The part of a mask for the rows of this rank and the keys of one place, to be added.

        Args:
            mask: the whole mask.
            place: the place of the keys in the ring.
            with_all: whether the keys that every rank has are among them.
        """
        if mask is None:
            return None
        to, call = self._to, self._call
        shape = shape_of(mask)
        mask = to.reshape(mask, (*(1,) * (4 - len(shape)), *shape), self._node)
        mask = self._range(mask, 2, self._shards[call.query], self._place, True)
        mask = self._range(mask, 3, self._shards[call.key], place, with_all)
        if self._is_switched and shape_of(mask)[1] > 1:
            mask = self._among.take(mask, self._heads)
        value, query = ir.tensor(mask), ir.tensor(call.query)
        assert value is not None and query is not None
        if value.dtype == torch.bool:
            mask = to.call(_aten.where.Scalar, mask, 0.0, float("-inf"), like=self._node)
        return self._to_dtype(mask, query.dtype)

    def _range(self, x: fx.Node, dim: int, shard: Shard, place: int, with_all: bool) -> fx.Node:
        """The positions of one place, and those that every rank has."""
        if shape_of(x)[dim] == 1 != shard.full:
            return x
        low, high = self._ring.bounds(self._to.ranks, shard.size, place)
        middle = (shard.before + low * shard.inner, shard.before + high * shard.inner)
        ranges = [(0, shard.before), middle, (shard.full - shard.after, shard.full)]
        chosen = ranges if with_all else [middle]
        parts = [self._to.slice(x, dim, *each, self._node) for each in chosen if each[0] < each[1]]
        return self._to.cat(parts, dim, self._node)

    def _expanded(self, mask: fx.Node, query: fx.Node, key: fx.Node) -> fx.Node:
        rows, columns = shape_of(query), shape_of(key)
        shape = [*rows[:3], columns[2]]
        return self._to.call(_aten.expand.default, mask, shape, like=self._node)

    def _with_heads(self, x: fx.Node) -> fx.Node:
        if len(shape_of(x)) == 4:
            return x
        return self._to.call(_aten.unsqueeze.default, x, 1, like=self._node)

    def _to_dtype(self, x: fx.Node, dtype: torch.dtype) -> fx.Node:
        value = ir.tensor(x)
        if value is not None and value.dtype == dtype:
            return x
        return self._to.call(_aten._to_copy.default, x, like=self._node, dtype=dtype)
