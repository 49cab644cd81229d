"""Axis rules of ops that only rearrange: views, copies, concatenation, slices, lookups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from pab_compile.passes.graph import ir

from .algebra import concat, cut, regroup_loosely
from .atoms import Dim, fresh, like, mark_summed, size, sources
from .trace import Dims, Outputs, Trace, anew, first, output_shape, output_shapes, wrap

# -- views -------------------------------------------------------------------------------------


def view(trace: Trace, node: fx.Node) -> Dims:
    """A new shape over the same elements in the same order."""
    dims, shape = trace.of(first(node)), output_shape(node)
    if isinstance(ir.argument(node, 1, "dtype"), torch.dtype) or 0 in shape:
        return carried(dims, shape)
    found, mixed = regroup_loosely(dims, shape)
    if mixed and trace.feeds[node]:
        trace.clashes.append((node, mixed, ()))
    return tuple(found)


def unsqueeze(trace: Trace, node: fx.Node) -> Dims:
    """Insert a dimension of size 1."""
    dims = list(trace.of(first(node)))
    dims.insert(wrap(ir.argument(node, 1, "dim"), len(dims) + 1), ())
    return tuple(dims)


def squeeze(trace: Trace, node: fx.Node) -> Dims:
    """Drop dimensions of size 1."""
    dims = trace.of(first(node))
    asked = ir.argument(node, 1, "dim")
    asked = range(len(dims)) if asked is None else asked
    gone = {wrap(d, len(dims)) for d in (asked if not isinstance(asked, int) else [asked])}
    return tuple(dim for i, dim in enumerate(dims) if i not in gone or size(dim) != 1)


def permute(trace: Trace, node: fx.Node) -> Dims:
    """Reorder all dimensions."""
    dims = trace.of(first(node))
    return tuple(dims[int(d)] for d in ir.argument(node, 1, "dims"))


def transpose(trace: Trace, node: fx.Node) -> Dims:
    """Swap two dimensions, the last two where the op names none."""
    dims = list(trace.of(first(node)))
    if len(dims) < 2:
        return tuple(dims)
    default = (-2, -1)
    one = wrap(ir.argument(node, 1, "dim0", default[0]), len(dims))
    other = wrap(ir.argument(node, 2, "dim1", default[1]), len(dims))
    dims[one], dims[other] = dims[other], dims[one]
    return tuple(dims)


def movedim(trace: Trace, node: fx.Node) -> Dims:
    """Move some dimensions; the others keep their order."""
    dims = trace.of(first(node))
    rank = len(dims)
    moved, targets = (
        [wrap(d, rank) for d in (found if isinstance(found, (list, tuple)) else [found])]
        for found in (ir.argument(node, 1, "source"), ir.argument(node, 2, "destination"))
    )
    order = [d for d in range(rank) if d not in moved]
    for target, dim in sorted(zip(targets, moved, strict=True)):
        order.insert(target, dim)
    return tuple(dims[d] for d in order)


def complex_pairs(trace: Trace, node: fx.Node) -> Dims:
    """``view_as_complex`` and ``view_as_real``: the last dimension of size 2 goes or comes."""
    dims = trace.of(first(node))
    return dims[:-1] if ir.is_call(node, "view_as_complex") else (*dims, fresh(2))


# -- repetition --------------------------------------------------------------------------------


def expand(trace: Trace, node: fx.Node) -> Dims:
    """Broadcast dimensions of size 1."""
    shape, dims = output_shape(node), trace.of(first(node))
    padded = ((),) * (len(shape) - len(dims)) + dims
    return tuple(dim if size(dim) == n else fresh(n) for dim, n in zip(padded, shape, strict=True))


def repeat(trace: Trace, node: fx.Node) -> Dims:
    """``repeat`` and ``tile``: copies lie outside what they repeat."""
    shape, dims = output_shape(node), trace.of(first(node))
    padded = ((),) * (len(shape) - len(dims)) + dims
    return tuple(
        (*fresh(n // size(dim)), *dim) if size(dim) else anew([n])[0]
        for dim, n in zip(padded, shape, strict=True)
    )


def repeat_interleave(trace: Trace, node: fx.Node) -> Dims:
    """Copies lie inside what they repeat."""
    shape, dims = output_shape(node), trace.of(first(node))
    asked = ir.argument(node, 2, "dim")
    if asked is None:
        dims, asked = (tuple(atom for dim in dims for atom in dim),), 0
    at = wrap(asked, len(dims))
    num = shape[at]
    if isinstance(ir.argument(node, 1, "repeats"), int) and size(dims[at]):
        new = (*dims[at], *fresh(num // size(dims[at])))
    else:
        new = like(num, dims[at])
    return (*dims[:at], new, *dims[at + 1 :])


# -- concatenation and its inverse -------------------------------------------------------------


def cat(trace: Trace, node: fx.Node) -> Dims:
    """Concatenate along one dimension; the others meet."""
    shape = output_shape(node)
    at = wrap(ir.argument(node, 1, "dim", 0), len(shape))
    parts = [part for part in ir.argument(node, 0, "tensors") if len(trace.of(part)) == len(shape)]
    return tuple(
        concat([trace.of(part)[i] for part in parts])
        if i == at
        else trace.meet(node, [(trace.of(part)[i], part) for part in parts], num)
        for i, num in enumerate(shape)
    )


def stack(trace: Trace, node: fx.Node) -> Dims:
    """Lay tensors side by side along a new dimension; the others meet."""
    shape = output_shape(node)
    at = wrap(ir.argument(node, 1, "dim", 0), len(shape))
    parts = list(ir.argument(node, 0, "tensors"))
    dims = [
        trace.meet(node, [(trace.of(part)[i], part) for part in parts], num)
        for i, num in enumerate((*shape[:at], *shape[at + 1 :]))
    ]
    dims.insert(at, fresh(shape[at]))
    return tuple(dims)


def divide(trace: Trace, node: fx.Node) -> Outputs:
    """``split`` and similar ops: pieces side by side along one dimension."""
    dims = trace.of(first(node))
    at = wrap(ir.argument(node, 2, "dim", 0), len(dims))
    out: Outputs = []
    offset = 0
    for shape in output_shapes(node):
        assert shape is not None
        piece = part_of(trace, first(node), dims[at], offset, offset + shape[at])
        out.append((*dims[:at], piece, *dims[at + 1 :]))
        offset += shape[at]
    return out


def unbind(trace: Trace, node: fx.Node) -> Outputs:
    """Take a dimension apart."""
    dims = trace.of(first(node))
    at = wrap(ir.argument(node, 1, "dim", 0), len(dims))
    mark_summed(dims[at])
    return [(*dims[:at], *dims[at + 1 :])] * len(ir.value(node))


def select(trace: Trace, node: fx.Node) -> Dims:
    """Take one position of a dimension."""
    dims = trace.of(first(node))
    at = wrap(ir.argument(node, 1, "dim"), len(dims))
    mark_summed(dims[at])
    return (*dims[:at], *dims[at + 1 :])


def part_of(trace: Trace, operand: fx.Node, dim: Dim, start: int, stop: int) -> Dim:
    """A slice. Rows of a table that no input feeds are a new axis every time."""
    if trace.feeds[operand] or (start == 0 and stop == size(dim)):
        return cut(dim, start, stop)
    return fresh(stop - start)


def bounds(node: fx.Node, position: int, num: int) -> tuple[int, int, int]:
    """Start, stop and step of a slice whose arguments begin at this position.

    If a bound is known only at run time, the step is 0, which fits no range.
    """
    start = ir.argument(node, position, "start")
    stop = ir.argument(node, position + 1, "end")
    step = ir.argument(node, position + 2, "step", 1)
    if any(isinstance(bound, fx.Node) for bound in (start, stop, step)):
        return 0, num, 0
    if not isinstance(step, int) or step < 1:
        return slice(start, stop, step).indices(num)
    return _clamped(start, 0, num), _clamped(stop, num, num), step


def _clamped(bound: int | None, default: int, num: int) -> int:
    """A bound of a slice as a position. A size stays one that remembers what it follows from."""
    if bound is None:
        return default
    return min(max(bound + num, 0) if bound < 0 else bound, num)


def slice_(trace: Trace, node: fx.Node) -> Dims:
    """Take a range of positions. A step of more than 1 makes a new atom."""
    dims, shape = trace.of(first(node)), output_shape(node)
    at = wrap(ir.argument(node, 1, "dim", 0), len(dims))
    start, _, step = bounds(node, 2, size(dims[at]))
    if step == 1:
        new = part_of(trace, first(node), dims[at], start, start + shape[at])
    else:
        new = like(shape[at], dims[at])
    return (*dims[:at], new, *dims[at + 1 :])


def narrow(trace: Trace, node: fx.Node) -> Dims:
    """Take a range of positions, given by its start and length."""
    dims, shape = trace.of(first(node)), output_shape(node)
    at = wrap(ir.argument(node, 1, "dim"), len(dims))
    start = ir.argument(node, 2, "start")
    if not isinstance(start, int):
        new = like(shape[at], dims[at])
    else:
        start = wrap(start, size(dims[at]) + 1) if start < 0 else start
        new = part_of(trace, first(node), dims[at], start, start + shape[at])
    return (*dims[:at], new, *dims[at + 1 :])


def pad(trace: Trace, node: fx.Node) -> Dims:
    """Add positions at the ends of the last dimensions."""
    dims = list(trace.of(first(node)))
    amounts = list(ir.argument(node, 1, "pad"))
    for index in range(len(amounts) // 2):
        low, high = amounts[2 * index : 2 * index + 2]
        at = len(dims) - 1 - index
        if low < 0 or high < 0:
            dims[at] = like(size(dims[at]) + low + high, dims[at])
        elif low or high:
            dims[at] = concat([fresh(low), dims[at], fresh(high)])
    return tuple(dims)


def pad_sequence(trace: Trace, node: fx.Node) -> Dims:
    """Sequences of several lengths as one tensor, each with padding behind it."""
    shape = output_shape(node)
    parts = list(ir.argument(node, 0, "sequences"))
    batch_first = ir.argument(node, 1, "batch_first", False)
    num = shape[1 if batch_first else 0]
    padded = [concat([trace.of(n)[0], fresh(num - size(trace.of(n)[0]))]) for n in parts]
    length = trace.meet(node, list(zip(padded, parts, strict=True)), num)
    rest = [
        trace.meet(node, [(trace.of(n)[i - 1], n) for n in parts], shape[i])
        for i in range(2, len(shape))
    ]
    batch = fresh(len(parts))
    return (batch, length, *rest) if batch_first else (length, batch, *rest)


# -- lookups -----------------------------------------------------------------------------------


def index(trace: Trace, node: fx.Node) -> Dims:
    """``x[:, i, j]``: the dimensions of the index tensors replace the indexed ones."""
    dims, shape = trace.of(first(node)), output_shape(node)
    asked = list(ir.argument(node, 1, "indices"))
    at = [i for i, index_ in enumerate(asked) if index_ is not None]
    if not at or any(ir.tensor(asked[i]).dtype == torch.bool for i in at):  # type: ignore[union-attr]
        return anew(shape)
    rank = max(len(trace.of(asked[i])) for i in at)
    rest = [dim for i, dim in enumerate(dims) if i not in at]
    where = at[0] if at == list(range(at[0], at[-1] + 1)) else 0
    looked_up: list[Dim] = []
    for position, num in enumerate(shape[where : where + rank]):
        pairs = [
            (trace.of(asked[i])[position - rank], asked[i])
            for i in at
            if len(trace.of(asked[i])) >= rank - position
        ]
        met = trace.meet(node, pairs, num)
        known = sources(met) & trace.main or not trace.feeds[first(node)]
        looked_up.append(met if known else like(num, *(dims[i] for i in at)))
    return (*rest[:where], *looked_up, *rest[where:])


def index_select(trace: Trace, node: fx.Node) -> Dims:
    """Pick positions of one dimension by an index tensor."""
    dims, shape = trace.of(first(node)), output_shape(node)
    at = wrap(ir.argument(node, 1, "dim"), len(dims))
    picked = trace.of(ir.argument(node, 2, "index"))
    known = picked and (sources(picked[0]) & trace.main or not trace.feeds[first(node)])
    new = picked[0] if known else like(shape[at], dims[at])
    return (*dims[:at], new, *dims[at + 1 :])


def resized(trace: Trace, node: fx.Node) -> Dims:
    """Ops that may change the size of a dimension, but not its meaning (gather, top-k, strides)."""
    return carried(trace.of(first(node)), output_shape(node))


def carried(dims: Dims, shape: Sequence[int]) -> Dims:
    """Dimensions of the same meaning, with new atoms if the size changed."""
    if len(dims) != len(shape):
        return anew(shape)
    return tuple(
        dim if size(dim) == n else (like(n, dim) if n != 1 else ())
        for dim, n in zip(dims, shape, strict=True)
    )


def embedding(trace: Trace, node: fx.Node) -> Dims:
    """Look rows of a table up: the index's axes, then channels."""
    found = trace.of(ir.argument(node, 1, "indices"))
    return (*found, fresh(output_shape(node)[-1], feature=True))
