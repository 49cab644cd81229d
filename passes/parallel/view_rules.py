"""Rules of ops that only rearrange: views, copies, concatenation, slices, lookups."""

from __future__ import annotations

import math

from torch import fx

from pab_compile.passes.graph import ir

from .shard import Shard, through_view
from .verdict import Answer, Shards, Verdict, first_operand, meet, others, same, shape_of, wrap


def view(node: fx.Node, shards: Shards) -> Answer:
    """A new shape over the same elements in the same order."""
    x = first_operand(node)
    before, after = shape_of(x), shape_of(node)
    if math.prod(before) != math.prod(after):
        return "it changes the element type of a sharded tensor"
    found = through_view(shards[x], before, after)
    return "the view cuts the axis into factors, or mixes it" if found is None else same(found)


def unsqueeze(node: fx.Node, shards: Shards) -> Answer:
    """Insert a dimension of size 1."""
    shard = shards[first_operand(node)]
    at = wrap(ir.argument(node, 1, "dim"), len(shape_of(node)))
    return same(shard.at(shard.dim + (at <= shard.dim)))


def squeeze(node: fx.Node, shards: Shards) -> Answer:
    """Drop dimensions of size 1."""
    x = first_operand(node)
    shape, shard = shape_of(x), shards[x]
    asked = ir.argument(node, 1, "dim")
    asked = range(len(shape)) if asked is None else asked
    asked = [asked] if isinstance(asked, int) else list(asked)
    gone = {wrap(d, len(shape)) for d in asked if shape[wrap(d, len(shape))] == 1}
    return same(shard.at(shard.dim - sum(d < shard.dim for d in gone)))


def permute(node: fx.Node, shards: Shards) -> Answer:
    """Reorder all dimensions."""
    shard = shards[first_operand(node)]
    rank = len(shape_of(node))
    dims = [wrap(d, rank) for d in ir.argument(node, 1, "dims")]
    return same(shard.at(dims.index(shard.dim)))


def transpose(node: fx.Node, shards: Shards) -> Answer:
    """Swap two dimensions, the last two where the op names none."""
    shard = shards[first_operand(node)]
    rank = len(shape_of(node))
    if rank < 2:
        return same(shard)
    pair = [wrap(ir.argument(node, i, f"dim{i - 1}", i - 3), rank) for i in (1, 2)]
    return same(shard.at(pair[1 - pair.index(shard.dim)] if shard.dim in pair else shard.dim))


def movedim(node: fx.Node, shards: Shards) -> Answer:
    """Move some dimensions; the others keep their order."""
    shard = shards[first_operand(node)]
    rank = len(shape_of(node))
    moved, targets = (
        [wrap(d, rank) for d in (found if isinstance(found, (list, tuple)) else [found])]
        for found in (ir.argument(node, 1, "source"), ir.argument(node, 2, "destination"))
    )
    order = [d for d in range(rank) if d not in moved]
    for target, dim in sorted(zip(targets, moved, strict=True)):
        order.insert(target, dim)
    return same(shard.at(order.index(shard.dim)))


def complex_pairs(node: fx.Node, shards: Shards) -> Answer:
    """``view_as_complex`` and ``view_as_real``: the last dimension of size 2 goes or comes."""
    x = first_operand(node)
    if ir.is_call(node, "view_as_complex") and shards[x].dim == len(shape_of(x)) - 1:
        return "it pairs positions of the axis up"
    return same(shards[x])


def expand(node: fx.Node, shards: Shards) -> Answer:
    """Broadcast dimensions of size 1."""
    x = first_operand(node)
    return same(shards[x].at(shards[x].dim + len(shape_of(node)) - len(shape_of(x))))


def repeat(node: fx.Node, shards: Shards) -> Answer:
    """``repeat`` and ``tile``: copies lie outside what they repeat."""
    x = first_operand(node)
    before, after, shard = shape_of(x), shape_of(node), shards[x]
    at = shard.dim + len(after) - len(before)
    times = after[at] // before[shard.dim]
    if times > 1 and not shard.is_whole:
        return "it repeats an axis of which a part is replicated"
    return same(Shard(at, shard.size, shard.outer * times, shard.inner, shard.before, shard.after))


def repeat_interleave(node: fx.Node, shards: Shards) -> Answer:
    """Copies lie inside what they repeat."""
    x = first_operand(node)
    shard, dim = shards[x], ir.argument(node, 2, "dim")
    if dim is None or not isinstance(ir.argument(node, 1, "repeats"), int):
        return "it repeats positions of the axis by a rule of its own"
    if wrap(dim, len(shape_of(x))) != shard.dim:
        return same(shard)
    if not shard.is_whole:
        return "it repeats an axis of which a part is replicated"
    times = shape_of(node)[shard.dim] // shard.full
    return same(Shard(shard.dim, shard.size, shard.outer, shard.inner * times))


def cat(node: fx.Node, shards: Shards) -> Answer:
    """Concatenate. Along the axis itself, one part is sharded and the others are replicated."""
    parts = list(ir.argument(node, 0, "tensors"))
    rank = len(shape_of(node))
    parts = [part for part in parts if len(shape_of(part)) == rank]
    dim = wrap(ir.argument(node, 1, "dim", 0), rank)
    shard = next(shards[part] for part in parts if part in shards)
    if dim != shard.dim:
        needs = meet(parts, shards, shard, rank)
        return needs if isinstance(needs, str) else Verdict((shard,), needs)
    at = [index for index, part in enumerate(parts) if part in shards]
    if len(at) > 1 or shard.outer > 1:
        return "it puts parts of the axis one after another"
    before = sum(shape_of(part)[dim] for part in parts[: at[0]]) + shard.before
    after = sum(shape_of(part)[dim] for part in parts[at[0] + 1 :]) + shard.after
    return same(Shard(dim, shard.size, 1, shard.inner, before, after))


def stack(node: fx.Node, shards: Shards) -> Answer:
    """Lay tensors side by side along a new dimension."""
    parts = list(ir.argument(node, 0, "tensors"))
    rank = len(shape_of(node))
    dim = wrap(ir.argument(node, 1, "dim", 0), rank)
    shard = next(shards[part] for part in parts if part in shards)
    needs = meet(parts, shards, shard, rank - 1)
    if isinstance(needs, str):
        return needs
    return Verdict((shard.at(shard.dim + (dim <= shard.dim)),), needs)


def divide(node: fx.Node, shards: Shards) -> Answer:
    """``split`` and similar ops: pieces side by side along one dimension."""
    x = first_operand(node)
    shard, dim = shards[x], wrap(ir.argument(node, 2, "dim", 0), len(shape_of(x)))
    num = len(ir.value(node))
    if dim != shard.dim:
        return Verdict((shard,) * num)
    found: list[Shard | None] = []
    start = 0
    for piece in ir.value(node):
        part = piece_of(shard, start, start + int(piece.shape[dim]))
        if isinstance(part, str):
            return part
        found.append(part)
        start += int(piece.shape[dim])
    return Verdict(tuple(found))


def piece_of(shard: Shard, start: int, stop: int) -> Shard | str | None:
    """The positions ``start:stop`` of a sharded dimension; None if they are replicated."""
    end = shard.full - shard.after
    if stop <= shard.before or start >= end:
        return None
    if start <= shard.before and stop >= end:
        before, after = shard.before - start, stop - end
        return Shard(shard.dim, shard.size, shard.outer, shard.inner, before, after)
    return "it takes some positions of the axis and leaves others"


def unbind(node: fx.Node, shards: Shards) -> Answer:
    """Take a dimension apart."""
    x = first_operand(node)
    shard, dim = shards[x], wrap(ir.argument(node, 1, "dim", 0), len(shape_of(x)))
    if dim == shard.dim:
        return "it takes the axis apart"
    return Verdict((shard.at(shard.dim - (dim < shard.dim)),) * len(ir.value(node)))


def select(node: fx.Node, shards: Shards) -> Answer:
    """Take one position of a dimension."""
    x = first_operand(node)
    shard, dim = shards[x], wrap(ir.argument(node, 1, "dim"), len(shape_of(x)))
    if dim != shard.dim:
        return same(shard.at(shard.dim - (dim < shard.dim)))
    at = wrap(ir.argument(node, 2, "index"), shard.full)
    if piece_of(shard, at, at + 1) is None:
        return Verdict((None,))
    return "it takes one position of the axis"


def slice_(node: fx.Node, shards: Shards) -> Answer:
    """Take a range of positions."""
    x = first_operand(node)
    shard, dim = shards[x], wrap(ir.argument(node, 1, "dim", 0), len(shape_of(x)))
    if dim != shard.dim:
        return same(shard)
    found = slice_bounds(node)
    if found is None:
        return "it takes some positions of the axis and leaves others"
    part = piece_of(shard, *found)
    return part if isinstance(part, str) else Verdict((part,))


def slice_bounds(node: fx.Node) -> tuple[int, int] | None:
    """First position and end of a ``slice`` or ``narrow`` without gaps, or None."""
    start = ir.argument(node, 2, "start")
    if not ir.is_call(node, "narrow"):
        return _range(node, 1)
    if not isinstance(start, int):
        return None
    x = first_operand(node)
    num = shape_of(x)[wrap(ir.argument(node, 1, "dim", 0), len(shape_of(x)))]
    start = start % num if start < 0 else start
    return start, start + int(ir.argument(node, 3, "length"))


def written_bounds(node: fx.Node) -> tuple[int, int] | None:
    """First position and end of what a write overwrites, without gaps, or None."""
    if not ir.is_call(node, "select_scatter"):
        return _range(node, 2)
    at = ir.argument(node, 3, "index")
    dim = wrap(ir.argument(node, 2, "dim"), len(shape_of(node)))
    return (at := wrap(at, shape_of(node)[dim]), at + 1) if isinstance(at, int) else None


def _range(node: fx.Node, place: int) -> tuple[int, int] | None:
    """The range ``start:end`` of a dimension; the dimension is the argument at this place."""
    shape = shape_of(first_operand(node))
    dim = wrap(ir.argument(node, place, "dim", 0), len(shape))
    names = ("start", "end", "step")
    usual = (None, None, 1)
    given = [ir.argument(node, place + 1 + i, names[i], usual[i]) for i in range(3)]
    if any(isinstance(bound, fx.Node) for bound in given):
        return None
    first, stop, step = slice(*given).indices(shape[dim])
    return (first, max(stop, first)) if step == 1 else None


def overwrite(node: fx.Node, shards: Shards) -> Answer:
    """``slice_scatter`` and ``select_scatter``."""
    base, written = node.args[:2]
    assert isinstance(base, fx.Node) and isinstance(written, fx.Node)
    rank = len(shape_of(base))
    dim = wrap(ir.argument(node, 2, "dim", 0), rank)
    is_row = ir.is_call(node, "select_scatter")

    def with_dim(shard: Shard) -> Shard:
        return shard.at(shard.dim + (is_row and shard.dim >= dim))

    shard = shards[base] if base in shards else with_dim(shards[written])
    if shard.dim == dim:
        return _overwrite_along(node, base, written, shards)
    row = shard.at(shard.dim - (is_row and shard.dim > dim))
    if shards.get(base, shard) != shard or shards.get(written, row) != row:
        return "what it writes is sharded along another dimension than what it writes to"
    needs = {n: s for n, s in ((base, shard), (written, row)) if n not in shards}
    return Verdict((shard,), needs) if row.fits(shape_of(written)) else "it broadcasts the axis"


def _overwrite_along(node: fx.Node, base: fx.Node, written: fx.Node, shards: Shards) -> Answer:
    """A write along the axis: to all positions that are sharded, or to none of them."""
    bounds = written_bounds(node)
    if bounds is None:
        return "it overwrites positions of the axis with gaps"
    start, stop = bounds
    if base in shards:
        shard = shards[base]
        part = piece_of(shard, start, stop)
        if isinstance(part, str):
            return "it overwrites some positions of the axis and leaves others"
        if part is None:  # every rank has what is written
            if written in shards:
                return "it overwrites positions of the axis by others"
            return same(shard)
        if written in shards:
            is_it = shards[written] == part
            return same(shard) if is_it else "it writes other positions of the axis to its places"
        if not part.fits(shape_of(written)):
            return "it broadcasts the axis"
        return Verdict((shard,), {written: part})
    part, full = shards[written], shape_of(base)[shards[written].dim]
    if part.outer > 1 and (start, stop) != (0, full):
        return "it overwrites positions of the axis between others"
    before, after = part.before + start, part.after + full - stop
    shard = Shard(part.dim, part.size, part.outer, part.inner, before, after)
    return Verdict((shard,), {base: shard})


def pad(node: fx.Node, shards: Shards) -> Answer:
    """Add positions at the ends of the last dimensions."""
    x = first_operand(node)
    shard, amounts = shards[x], list(ir.argument(node, 1, "pad"))
    at = 2 * (len(shape_of(x)) - 1 - shard.dim)
    return "it pads the axis" if any(amounts[at : at + 2]) else same(shard)


def index(node: fx.Node, shards: Shards) -> Answer:
    """``x[:, i, j]`` along other dimensions than the axis."""
    x = first_operand(node)
    if others(node, shards) or x not in shards:
        return "it looks positions up by a sharded tensor"
    asked = list(ir.argument(node, 1, "indices"))
    at = [i for i, found in enumerate(asked) if found is not None]
    shard = shards[x]
    if shard.dim in at:
        return "it looks up positions of the axis"
    rank = max(len(shape_of(asked[i])) for i in at)
    adjacent = at == list(range(at[0], at[-1] + 1))
    if not adjacent or any(_is_mask(asked[i]) for i in at):
        return "it looks positions up by a mask"
    return same(shard.at(shard.dim + (rank - len(at) if shard.dim > at[0] else 0)))


def _is_mask(node: fx.Node) -> bool:
    tensor = ir.tensor(node)
    return tensor is None or not (tensor.is_floating_point() or tensor.dtype.itemsize > 1)


def index_select(node: fx.Node, shards: Shards) -> Answer:
    """Pick positions of a dimension other than the axis."""
    x = first_operand(node)
    if others(node, shards) or x not in shards:
        return "it looks positions up by a sharded tensor"
    if wrap(ir.argument(node, 1, "dim"), len(shape_of(x))) == shards[x].dim:
        return "it looks up positions of the axis"
    return same(shards[x])


def embedding(node: fx.Node, shards: Shards) -> Answer:
    """Look rows of a table up."""
    indices = ir.argument(node, 1, "indices")
    return same(shards[indices]) if indices in shards else "it looks rows of the axis up"


def along_other_dims(node: fx.Node, shards: Shards) -> Answer:
    """``flip``, ``roll``, ``cumsum``, ``softmax``: they mix one or several dimensions."""
    x = first_operand(node)
    at = 2 if ir.is_call(node, "roll") else 1
    asked = ir.argument(node, at, "dims", ir.argument(node, at, "dim"))
    if asked is None:
        return "it mixes all positions"
    rank = len(shape_of(x))
    mixed = {wrap(d, rank) for d in (asked if isinstance(asked, (list, tuple)) else [asked])}
    return "it mixes positions of the axis" if shards[x].dim in mixed else same(shards[x])
