"""Floating point operations of captured ops: contractions only, two per multiply-add."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import fx

from . import ir


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
    if name == "einsum":
        return _einsum_flops(node)
    out, first = ir.shape(node), _shape_of(node, 0)
    if out is None or first is None:
        return 0
    if name.startswith("conv") and len(node.args) > 1:
        weight = _shape_of(node, 1) or ()
        return 2 * math.prod(out) * math.prod(weight[1:])
    if name == "linear" or name in ("mm", "bmm", "matmul"):
        return 2 * math.prod(out) * first[-1]
    if name in ("addmm", "baddbmm"):
        return 2 * math.prod(out) * (_shape_of(node, 1) or (0,))[-1]
    return 0


def _shape_of(node: fx.Node, position: int) -> tuple[int, ...] | None:
    argument = node.args[position] if len(node.args) > position else None
    return ir.shape(argument) if isinstance(argument, fx.Node) else None


def _attention_flops(node: fx.Node) -> int:
    query, key, val = (_shape_of(node, position) for position in range(3))
    if query is None or key is None or val is None:
        return 0
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + val[-1])


def _einsum_flops(node: fx.Node) -> int:
    equation, operands = node.args[0], node.args[1]
    if not isinstance(equation, str) or not isinstance(operands, (list, tuple)):
        return 0
    terms = equation.replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=False):
        if isinstance(operand, fx.Node) and isinstance(ir.value(operand), torch.Tensor):
            sizes.update(zip(term, ir.shape(operand) or (), strict=False))
    return 2 * math.prod(sizes.values()) if len(terms) > 1 else 0
