"""Emission: the ops that take a rank's part of a tensor, re-shard it and gather it (apply).

A re-sharding is one ``all_to_all_single``, with the sizes that the ranks really hold. Nothing is
padded.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from pab_compile.passes.graph import ir

from .append import Appender
from .ring import PassedOn
from .shard import Ranks, Shard

_aten = torch.ops.aten
_c10d = torch.ops._c10d_functional


@dataclass(frozen=True)
class Exchange:
    """The purpose of a collective.

    Attributes:
        shape: of the full tensor.
        source: how it is sharded before, without replicated positions; None where all ranks add up
            what they have.
        target: how it is sharded after; None where every rank gets all of it.
        among: the ranks that take part; None for all.
    """

    shape: tuple[int, ...]
    source: Shard | None
    target: Shard | None
    among: Ranks | None = None

    def elements(self, sender: int, receiver: int, ranks: Ranks) -> int:
        """Elements that one rank sends to another: the sender's share of the receiver's part."""
        if self.among is not None:
            sender, receiver = sender - self.among.before, receiver - self.among.before
            if not (0 <= sender < self.among.size and 0 <= receiver < self.among.size):
                return 0
            ranks = self.among
        if self.source is None:
            return math.prod(self.shape)
        row = math.prod(self.shape) // self.source.size
        mine = row * ranks.counts(self.source.size)[sender]
        if self.target is None:
            return mine
        local = self.target.local(ranks.counts(self.target.size)[receiver])
        return mine * local // self.target.full


class Emitter(Appender):
    """Appends the ops that slice, re-shard and gather tensors on one rank.

    Attributes:
        made: the collectives so far, each with its purpose.
    """

    def __init__(self, graph: fx.Graph, ranks: Ranks) -> None:
        super().__init__(graph)
        self.ranks = ranks
        self.made: dict[fx.Node, Exchange | PassedOn] = {}
        self._is_even = True

    def among(self, ranks: Ranks, is_even: bool) -> Emitter:
        """An emitter for exchanges among some of the ranks, in the same graph.

        Args:
            ranks: these ranks.
            is_even: whether such ranks have equal parts everywhere. The graphs of all ranks then
                have the same ops.
        """
        found = Emitter(self.graph, ranks)
        found.made, found._known = self.made, self._known
        found._is_even = is_even
        return found

    def made_since(self, num: int) -> tuple[fx.Node, ...]:
        """The collectives behind the first ``num``."""
        last = itertools.islice(reversed(self.made), len(self.made) - num)
        return tuple(last)[::-1]

    def take(self, x: fx.Node, shard: Shard) -> fx.Node:
        """This rank's part of a replicated tensor."""
        first, end = self.ranks.bounds(shard.size)
        shape = ir.shape(x) or ()
        dim = shard.dim
        low = self.slice(x, dim, 0, shard.before, x) if shard.before else None
        high = self.slice(x, dim, shard.full - shard.after, shard.full, x) if shard.after else None
        middle = self.slice(x, dim, shard.before, shard.full - shard.after, x)
        if shard.outer == 1:
            middle = self.slice(middle, dim, first * shard.inner, end * shard.inner, x)
        else:
            inside = (shard.outer, shard.size, shard.inner)
            middle = self.reshape(middle, (*shape[:dim], *inside, *shape[dim + 1 :]), x)
            middle = self.slice(middle, dim + 1, first, end, x)
            num = shard.outer * (end - first) * shard.inner
            middle = self.reshape(middle, (*shape[:dim], num, *shape[dim + 1 :]), x)
        return self.cat([part for part in (low, middle, high) if part is not None], dim, x)

    def switch(
        self,
        x: fx.Node,
        source: Shard,
        target: Shard,
        like: fx.Node,
        full: Sequence[int] | None = None,
    ) -> fx.Node:
        """Re-shard: this rank's part along ``source`` becomes its part along ``target``.

        Args:
            x: the local part along ``source``.
            source: may have replicated positions, of which each rank keeps its part of ``target``.
            target: may have replicated positions, which each rank gets from all others.
            like: the node of the full graph, for its shape.
            full: the shape of the full tensor, if it is another one.
        """
        shape = tuple(full or ir.shape(like) or ())
        if source.is_whole:
            return self._exchange(x, source, target, shape, like)
        assert source.outer == 1 and target.is_whole
        dim = source.dim
        num = (ir.shape(x) or ())[dim]
        bare = replace(source, before=0, after=0)
        inside = (*shape[:dim], bare.full, *shape[dim + 1 :])
        middle = self.slice(x, dim, source.before, num - source.after, like)
        parts = [self._exchange(middle, bare, target, inside, like)]
        if source.before:
            parts.insert(0, self.take(self.slice(x, dim, 0, source.before, like), target))
        if source.after:
            parts.append(self.take(self.slice(x, dim, num - source.after, num, like), target))
        return self.cat(parts, dim, like)

    def gather(self, x: fx.Node, shard: Shard, like: fx.Node) -> fx.Node:
        """The full tensor, on every rank."""
        shape = ir.shape(like) or ()
        dim = shard.dim
        num = (ir.shape(x) or ())[dim]
        low = self.slice(x, dim, 0, shard.before, like) if shard.before else None
        high = self.slice(x, dim, num - shard.after, num, like) if shard.after else None
        middle = self.slice(x, dim, shard.before, num - shard.after, like)
        outer, inner = (
            math.prod(shape[:dim]) * shard.outer,
            shard.inner * math.prod(shape[dim + 1 :]),
        )
        counts = self.ranks.counts(shard.size)
        flat = self.reshape(middle, (-1,), like)
        inside = (*shape[:dim], shard.sharded, *shape[dim + 1 :])
        exchange = Exchange(inside, replace(shard, before=0, after=0), None)
        if len(set(counts)) == 1:
            group = (self.ranks.size, self.ranks.group)
            sent = self.call(_c10d.all_gather_into_tensor.default, flat, *group, like=like)
            self.made[sent] = exchange
            got = self.call(_c10d.wait_tensor.default, sent, like=like)
        else:
            sizes = [outer * count * inner for count in counts]
            copies = self.call(_aten.repeat.default, flat, [self.ranks.size], like=like)
            mine = [sizes[self.ranks.rank]] * len(sizes)
            got = self.exchanged(copies, sizes, mine, exchange, like)
        joined = self._join(got, [(outer, count, inner) for count in counts], 1, like)
        middle = self.reshape(joined, inside, like)
        return self.cat([part for part in (low, middle, high) if part is not None], dim, like)

    def add_up(self, x: fx.Node, like: fx.Node) -> fx.Node:
        """The sum of what all ranks have, on every rank."""
        sent = self.call(_c10d.all_reduce.default, x, "sum", self.ranks.group, like=like)
        self.made[sent] = Exchange(ir.shape(x) or (), None, None)
        return self.call(_c10d.wait_tensor.default, sent, like=like)

    def exchanged(
        self,
        flat: fx.Node,
        received: Sequence[int],
        sent: Sequence[int],
        exchange: Exchange | PassedOn,
        like: fx.Node,
    ) -> fx.Node:
        """Exchange parts of a flat tensor and wait for them. Sizes are per rank."""
        in_group = self.ranks.in_group
        sizes = (in_group(received), in_group(sent), self.ranks.group)
        started = self.call(_c10d.all_to_all_single.default, flat, *sizes, like=like)
        self.made[started] = exchange
        return self.call(_c10d.wait_tensor.default, started, like=like)

    def _exchange(
        self, x: fx.Node, source: Shard, target: Shard, shape: Sequence[int], like: fx.Node
    ) -> fx.Node:
        """``switch`` for a source without replicated positions. ``shape`` is the full shape."""
        factors, at_source, at_target = _factors(shape, source, target)
        mine = self.ranks.rank
        counts_s = self.ranks.counts(source.size)
        counts_t = self.ranks.counts(target.size)
        if target.is_whole:
            rows = list(counts_t)
        else:
            rows = [target.local(count) for count in counts_t]
        sizes = list(factors)
        sizes[at_source] = counts_s[mine]
        y = self.reshape(x, sizes, like)
        order = [at_target, *(d for d in range(len(sizes)) if d != at_target)]
        y = self.permute(y, order, like)
        if not target.is_whole:
            y = self._rows_for_all(y, target, like)
        rest = math.prod(sizes) // sizes[at_target]
        per_source = rest // sizes[at_source]
        sent = [num * rest for num in rows]
        received = [rows[mine] * per_source * count for count in counts_s]
        among = self.ranks if self.ranks.before or self.ranks.after else None
        exchange = Exchange(tuple(shape), source, target, among)
        got = self.exchanged(self.reshape(y, (-1,), like), received, sent, exchange, like)
        after = [sizes[d] for d in order]
        place = order.index(at_source)
        after[0] = rows[mine]
        shapes = [(*after[:place], count, *after[place + 1 :]) for count in counts_s]
        joined = self._join(got, shapes, place, like)
        back = self.permute(joined, [order.index(d) for d in range(len(order))], like)
        return self.reshape(back, target.local_shape(shape, counts_t[mine]), like)

    def _rows_for_all(self, y: fx.Node, target: Shard, like: fx.Node) -> fx.Node:
        """Rows for every rank, one rank after another: its own part and the replicated rows."""
        parts: list[fx.Node] = []
        for rank in range(self.ranks.size):
            first, end = self.ranks.bounds(target.size, rank)
            bounds = [
                (0, target.before),
                (target.before + first * target.inner, target.before + end * target.inner),
                (target.full - target.after, target.full),
            ]
            parts += [self.slice(y, 0, low, high, like) for low, high in bounds if low < high]
        return self.cat(parts, 0, like)

    def _join(
        self, flat: fx.Node, shapes: Sequence[Sequence[int]], dim: int, like: fx.Node
    ) -> fx.Node:
        """Parts that lie one after another in memory, concatenated along a dimension."""
        if len(set(shapes)) == 1 and self._is_even:  # equal parts: a permutation will do
            shape, num = list(shapes[0]), len(shapes)
            stacked = self.reshape(flat, (num, *shape), like)
            order = [*range(1, dim + 1), 0, *range(dim + 1, len(shape) + 1)]
            moved = self.permute(stacked, order, like)
            return self.reshape(moved, (*shape[:dim], num * shape[dim], *shape[dim + 1 :]), like)
        sizes = [math.prod(shape) for shape in shapes]
        pieces = self.call(_aten.split_with_sizes.default, flat, sizes, like=like)
        parts = [self.pick(pieces, i, like) for i in range(len(sizes))]
        return self.cat(
            [self.reshape(p, shape, like) for p, shape in zip(parts, shapes, strict=True)],
            dim,
            like,
        )


def _factors(shape: Sequence[int], source: Shard, target: Shard) -> tuple[list[int], int, int]:
    """Full sizes with both axes as separate factors, and the places of these.

    A target with replicated positions stays one dimension.
    """
    dims: list[int] = []
    where: dict[int, int] = {}
    for dim, num in enumerate(shape):
        shards = [s for s in (source, target) if s.dim == dim and s.is_whole]
        inside = num
        for number in sorted((0, 1), key=lambda i: -(source, target)[i].inner):
            shard = (source, target)[number]
            if shard.dim != dim:
                continue
            if not shard.is_whole:
                where[number] = len(dims)
                continue
            outer = inside // (shard.size * shard.inner)
            dims += [outer] if outer > 1 else []
            where[number] = len(dims)
            dims.append(shard.size)
            inside = shard.inner
        if inside > 1 or not shards:
            dims.append(inside)
    return dims, where[0], where[1]
