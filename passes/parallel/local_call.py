"""Local calls: sizes that are written into views and slices become those of one rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.ops import RARE_RESHAPES, RARE_SPLITS, RESHAPES, SPLITS

from .shard import Ranks, Shard
from .verdict import Shards, Verdict, first_operand, shape_of, wrap
from .view_rules import piece_of, slice_bounds, written_bounds

_RESHAPES = RESHAPES | RARE_RESHAPES
_SPLITS = SPLITS | RARE_SPLITS
_aten = torch.ops.aten


def local_call(
    node: fx.Node, verdict: Verdict, shards: Shards, ranks: Ranks
) -> tuple[Any, Sequence[Any], dict[str, Any]]:
    """Target and arguments of the op that a rank calls instead of a full one.

    Args:
        node: a call in the graph of one device.
        verdict: what the op does to the axis.
        shards: how its operands are sharded.
        ranks: the ranks.

    Returns:
        Target, arguments with local sizes, keyword arguments. Operands are still the full ones.
    """
    x = first_operand(node)
    out, mine = verdict.outputs[0], shards.get(x)
    if ir.is_call(node, *_RESHAPES):
        return _aten.reshape.default, (x, list(_local_shape(node, out, ranks))), {}
    if ir.is_call(node, "expand", "broadcast_to"):
        return node.target, (x, list(_local_shape(node, out, ranks))), {}
    if ir.is_call(node, "repeat_interleave"):
        return node.target, node.args, {k: v for k, v in node.kwargs.items() if k == "dim"}
    if out is not None and ir.is_call(node, "slice_scatter", "select_scatter"):
        return _local_write(node, out, ranks)
    if mine is None:
        return node.target, node.args, dict(node.kwargs)
    if ir.is_call(node, *_SPLITS) and _dim(node, 2) == mine.dim:
        sizes = [
            _local_size(val.shape[mine.dim], shard, ranks)
            for val, shard in zip(ir.value(node), verdict.outputs, strict=True)
        ]
        return _aten.split_with_sizes.default, (x, sizes, mine.dim), {}
    if ir.is_call(node, "slice", "narrow") and _dim(node, 1) == mine.dim:
        bounds = slice_bounds(node)
        assert bounds is not None
        start = _moved(bounds[0], mine, ranks)
        stop = start + _local_size(bounds[1] - bounds[0], out, ranks)
        return _aten.slice.Tensor, (x, mine.dim, start, stop), {}
    if ir.is_call(node, "select") and _dim(node, 1) == mine.dim:
        at = wrap(ir.argument(node, 2, "index"), mine.full)
        return node.target, (x, mine.dim, _moved(at, mine, ranks)), {}
    return node.target, node.args, dict(node.kwargs)


def _local_write(
    node: fx.Node, out: Shard, ranks: Ranks
) -> tuple[Any, Sequence[Any], dict[str, Any]]:
    """A write, whose positions move if they are those of the sharded dimension."""
    bounds, dim = written_bounds(node), _dim(node, 2)
    if bounds is None or dim != out.dim:
        return node.target, node.args, dict(node.kwargs)
    start, part = _moved(bounds[0], out, ranks), piece_of(out, *bounds)
    assert not isinstance(part, str)
    if ir.is_call(node, "select_scatter"):
        return node.target, (*node.args[:2], dim, start), {}
    stop = start + _local_size(bounds[1] - bounds[0], part, ranks)
    return _aten.slice_scatter.default, (*node.args[:2], dim, start, stop), {}


def _dim(node: fx.Node, position: int) -> int:
    rank = len(shape_of(first_operand(node)))
    return wrap(ir.argument(node, position, "dim", 0), rank)


def _local_shape(node: fx.Node, shard: Shard | None, ranks: Ranks) -> tuple[int, ...]:
    shape = shape_of(node)
    return shape if shard is None else shard.local_shape(shape, ranks.count(shard.size))


def _local_size(num: int, shard: Shard | None, ranks: Ranks) -> int:
    return num if shard is None else shard.local(ranks.count(shard.size))


def _moved(position: int, shard: Shard, ranks: Ranks) -> int:
    """A position of the replicated part of a dimension, on this rank."""
    if position < shard.full - shard.after or position <= shard.before:
        return position
    return position - shard.full + shard.local(ranks.count(shard.size))
