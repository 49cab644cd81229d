"""Floating point operations of captured ops: contractions only, two per multiply-add."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import fx

from . import ir
from .contractions import contraction
from .kept import is_kept


def count_flops(nodes: Iterable[fx.Node]) -> int:
    """Sum of the floating point operations of these nodes."""
    return sum(node_flops(node) for node in nodes)


def node_flops(node: fx.Node) -> int:
    """Floating point operations of one node; 0 for everything that is not a contraction."""
    if node.op != "call_function":
        return 0
    name = ir.op_name(node)
    if "scaled_dot_product" in name or "flash_attn" in name or "sage_attn" in name:
        return _attention_flops(node)
    out = _numbers(node)
    if out is None:
        return 0
    if is_kept(node):
        return int(node.args[5]) * math.prod(out)  # type: ignore[arg-type]
    if name.startswith("conv") and len(node.args) > 1:
        weight = _shape_of(node, 1) or ()
        return 2 * math.prod(out) * math.prod(weight[1:])
    product = contraction(node)
    if product is None or len(product.operands) < 2:
        return 0
    first_places = (places[0] for places in product.summed)
    summed = ((_numbers(product.operands[i]) or ())[dim] for i, dim in first_places)
    return 2 * math.prod(out) * math.prod(summed)


def _shape_of(node: fx.Node, position: int) -> tuple[int, ...] | None:
    argument = node.args[position] if len(node.args) > position else None
    return _numbers(argument) if isinstance(argument, fx.Node) else None


def _numbers(node: fx.Node) -> tuple[int, ...] | None:
    """Sizes of a tensor as plain numbers: a count decides nothing."""
    return ir.counted_sizes(node)[0] if ir.tensor(node) is not None else None


def _attention_flops(node: fx.Node) -> int:
    query, key, val = (_shape_of(node, position) for position in range(3))
    if query is None or key is None or val is None:
        return 0
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + val[-1])
