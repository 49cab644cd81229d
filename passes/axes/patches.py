"""Axis rules of ops that make patches of a grid, or a grid of patches, without weights."""

from __future__ import annotations

from torch import fx

from pab_compile.passes.graph import ir

from .algebra import regroup
from .atoms import Dim, fresh, like, size
from .sums import strided
from .trace import Dims, Trace, first, output_shape, wrap


def pixel_shuffle(trace: Trace, node: fx.Node) -> Dims:
    """Channels become a finer grid. The axes of the grid keep their names."""
    dims, shape = trace.of(first(node)), output_shape(node)
    *batch, _, height, width = dims
    factor = shape[-2] // size(height) if size(height) else 1
    grid = ((*height, *fresh(factor)), (*width, *fresh(factor)))
    return (*batch, fresh(shape[-3], feature=True), *grid)


def pixel_unshuffle(trace: Trace, node: fx.Node) -> Dims:
    """A finer grid becomes channels. The grid keeps its outer factor."""
    dims, shape = trace.of(first(node)), output_shape(node)
    cut = [
        _windows(dim, n, size(dim) // n, False)
        for dim, n in zip(dims[-2:], shape[-2:], strict=True)
    ]
    inside = tuple(atom for _, inner in cut for atom in inner)
    return (*dims[:-3], (*dims[-3], *inside), *[outer for outer, _ in cut])


def unfold(trace: Trace, node: fx.Node) -> Dims:
    """``Tensor.unfold``: windows along one dimension. Their inside is the last dimension."""
    dims, shape = trace.of(first(node)), output_shape(node)
    at = wrap(ir.argument(node, 1, "dimension"), len(dims))
    window, step = ir.argument(node, 2, "size"), ir.argument(node, 3, "step")
    outer, inner = like(shape[at], dims[at]), like(shape[-1], dims[at])
    if window == step and (found := regroup([dims[at]], (shape[at], window))):
        outer, inner = found
    return (*dims[:at], outer, *dims[at + 1 :], inner)


def im2col(trace: Trace, node: fx.Node) -> Dims:
    """``F.unfold``: ``[..., c, h, w]`` becomes ``[..., c * window, windows]``."""
    dims = trace.of(first(node))
    kernel, dilation, padding, stride = (_pair(node, i) for i in range(1, 5))
    tokens: Dim = ()
    channels = dims[-3]
    for dim, window, gap, margin, step in zip(
        dims[-2:], kernel, dilation, padding, stride, strict=True
    ):
        num = (size(dim) + 2 * margin - gap * (window - 1) - 1) // step + 1
        overlaps = window != step or margin > 0 or gap > 1
        outer, inner = _windows(dim, num, window, overlaps)
        tokens, channels = (*tokens, *outer), (*channels, *inner)
    return (*dims[:-3], channels, tokens)


def col2im(trace: Trace, node: fx.Node) -> Dims:
    """``F.fold``: ``[..., c * window, tokens]`` becomes ``[..., c, h, w]``."""
    dims, shape = trace.of(first(node)), output_shape(node)
    kernel, dilation, padding, stride = (_pair(node, i) for i in range(2, 6))
    nums = [
        (n + 2 * margin - gap * (window - 1) - 1) // step + 1
        for n, window, gap, margin, step in zip(
            shape[-2:], kernel, dilation, padding, stride, strict=True
        )
    ]
    rows = regroup([dims[-1]], nums)
    grid: list[Dim] = []
    for i, n in enumerate(shape[-2:]):
        outer = dims[-1] if rows is None else rows[i]
        side_by_side = rows is not None and nums[i] * kernel[i] == n
        grid.append((*outer, *fresh(kernel[i])) if side_by_side else like(n, outer))
    return (*dims[:-2], fresh(shape[-3], feature=True), *grid)


def _windows(dim: Dim, num: int, window: int, overlaps: bool) -> tuple[Dim, Dim]:
    """The axis of the windows of a dimension, and the one inside a window."""
    if num > 1 and not overlaps and num * window == size(dim):
        found = regroup([dim], (num, window))
        if found is not None:
            return found[0], found[1]
    outer = strided(dim, num, 0) if num > 1 or size(dim) == 1 else like(1, dim)
    return outer, fresh(window)


def _pair(node: fx.Node, position: int) -> tuple[int, int]:
    found = node.args[position]
    assert isinstance(found, (list, tuple))
    rows, columns = (int(str(n)) for n in (found * 2)[:2])
    return rows, columns
