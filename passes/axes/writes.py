"""Axis rules of ops that write a part of a tensor. What they leave as it was keeps its axes."""

from __future__ import annotations

import torch
from torch import fx

from pab_compile.passes.graph import ir

from .algebra import concat
from .atoms import Atom, Dim, fresh, leaves, like, size, sources
from .shapes import bounds, part_of
from .trace import Dims, Trace, first, output_shape, wrap


def slice_scatter(trace: Trace, node: fx.Node) -> Dims:
    """Overwrite a slice of a tensor. The slice gets the axes of the written tensor."""
    base, written = node.args[0], node.args[1]
    assert isinstance(base, fx.Node) and isinstance(written, fx.Node)
    shape, old, new = output_shape(node), trace.of(base), trace.of(written)
    at = wrap(ir.argument(node, 2, "dim", 0), len(shape))
    start, stop, step = bounds(node, 3, shape[at])
    dims = [
        trace.meet(node, [(old[i], base), (new[i], written)], num) for i, num in enumerate(shape)
    ]
    if step == 1 and size(new[at]) != shape[at]:
        middle = part_of(trace, base, old[at], start, stop)
        middle = trace.meet(node, [(middle, base), (new[at], written)], stop - start)
        ends = [
            _kept(trace, base, old[at], low, high) for low, high in ((0, start), (stop, shape[at]))
        ]
        dims[at] = concat([ends[0], middle, ends[1]])
    return tuple(dims)


def _kept(trace: Trace, base: fx.Node, dim: Dim, start: int, stop: int) -> Dim:
    """The positions that a write leaves. Those of a buffer are from an earlier call."""
    if start >= stop:
        return fresh(0)
    if not trace.feeds[base] and any(atom.cached for atom in leaves(dim)):
        return (Atom(stop - start, cached=True),)
    return part_of(trace, base, dim, start, stop)


def select_scatter(trace: Trace, node: fx.Node) -> Dims:
    """Overwrite one position of a dimension. The others get the axes of the written tensor."""
    base, written = node.args[0], node.args[1]
    assert isinstance(base, fx.Node) and isinstance(written, fx.Node)
    shape, old = output_shape(node), trace.of(base)
    at = wrap(ir.argument(node, 2, "dim"), len(shape))
    new = list(trace.of(written))
    new.insert(at, ())
    return tuple(
        old[i] if i == at else trace.meet(node, [(old[i], base), (new[i], written)], num)
        for i, num in enumerate(shape)
    )


def scattered(trace: Trace, node: fx.Node) -> Dims:
    """``index_copy``, ``scatter``: a dimension gets rows of another tensor and shows both axes.

    ``index_put`` with one vector of positions, or with one mask, does the same.
    """
    dims, shape = trace.of(first(node)), output_shape(node)
    if ir.is_call(node, "index_put"):
        indices = ir.argument(node, 1, "indices")
        start = next(i for i, index in enumerate(indices) if index is not None)
        written = ir.argument(node, 2, "values")
        mask = ir.tensor(indices[start])
        covered = mask.ndim if mask is not None and mask.dtype == torch.bool else 1
        plain = len(indices) == start + 1 and (covered > 1 or len(trace.of(indices[start])) == 1)
    else:
        start, covered = wrap(ir.argument(node, 1, "dim"), len(shape)), 1
        written = ir.argument(node, 3, "src" if "scatter" in ir.op_name(node) else "source")
        plain = isinstance(written, fx.Node)
    if not plain:
        return dims
    missing = len(shape) - covered + 1 - len(trace.of(written))
    if missing < 0:
        return dims
    new = ((),) * missing + trace.of(written)
    rows = new[start]
    new = (*new[:start], *[()] * (covered - 1), *new[start:])
    at = start + covered - 1
    return tuple(
        _with_rows(dims[i], rows, num)
        if i == at
        else trace.meet(node, [(dims[i], first(node)), (new[i], written)], num)
        for i, num in enumerate(shape)
    )


def _with_rows(dim: Dim, rows: Dim, num: int) -> Dim:
    own = sources(rows)
    return dim if own and own <= sources(dim) else like(num, dim, rows)
