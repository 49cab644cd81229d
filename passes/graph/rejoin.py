"""Rejoin: a tensor that is split into parts and concatenated again is the tensor itself.

Blocks over one joint stream often hand its parts to the next block, which joins them again::

    %y = add(%x, %branch)
    %text = slice(%y, 1, 0, 3)
    %picture = slice(%y, 1, 3, 9)
    %z = cat([%text, %picture], 1)       ->      %z is %y

So the residual stream stays one chain of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import fx

from . import ir
from .ops import COPIES, PARTS, RARE_SPLITS, SPLITS, VIEWS
from .walk import look_through, reached


@dataclass(frozen=True)
class Part:
    """A part of a tensor along one dimension.

    Attributes:
        whole: the tensor.
        dim: the dimension, from 0.
        start: its first position.
        stop: the position behind its last.
    """

    whole: fx.Node
    dim: int
    start: int
    stop: int


def rejoin(graph_module: fx.GraphModule) -> int:
    """Replace every concatenation of all parts of a tensor by the tensor, if it has its layout.

    What the graph returns stays memory of its own.

    Args:
        graph_module: a captured graph; modified in place.

    Returns:
        The number of concatenations that were replaced.
    """
    count = 0
    for node in list(ir.calls(graph_module.graph)):
        whole = _whole(node) if ir.is_call(node, "cat", "concat") else None
        if whole is not None and not is_returned(node):
            node.replace_all_uses_with(whole)
            count += 1
    if count:
        graph_module.graph.eliminate_dead_code(ir.must_stay)
        graph_module.recompile()
    return count


def _whole(cat: fx.Node) -> fx.Node | None:
    """The tensor that a concatenation puts together again; None if it does not."""
    listed, shape = ir.argument(cat, 0, "tensors"), ir.shape(cat)
    if not isinstance(listed, Sequence) or shape is None:
        return None
    whole = whole_of(listed, ir.argument(cat, 1, "dim", 0) % len(shape))
    return whole if whole is not None and have_one_layout(whole, cat) else None


def whole_of(listed: Sequence[fx.Node], dim: int) -> fx.Node | None:
    """The tensor of which values are the parts from its start on, in order; None if of none."""
    parts = [taken(look_through(operand, COPIES), dim) for operand in listed]
    place, whole = 0, None
    for part in parts:
        if part is None or part.start != place or part.whole is not (whole or part.whole):
            return None
        place, whole = part.stop, part.whole
    return whole


def taken(node: fx.Node, dim: int) -> Part | None:
    """What a node takes of another one along a dimension; None if it takes something else."""
    if ir.is_call(node, "slice", "narrow"):
        part = _sliced(node)
    elif ir.is_getitem(node) and ir.is_call(node.all_input_nodes[0], *SPLITS):
        part = _split_off(node)
    else:
        return None
    if part is None or part.dim != dim:
        return None
    outer = taken(part.whole, dim)
    if outer is None:
        return part
    return replace(outer, start=outer.start + part.start, stop=outer.start + part.stop)


def _sliced(node: fx.Node) -> Part | None:
    whole = _operand(node)
    shape, own = ir.shape(whole), ir.shape(node)
    start = ir.argument(node, 2, "start") or 0
    is_plain = isinstance(start, int) and ir.argument(node, 4, "step", 1) == 1
    if shape is None or own is None or not is_plain:
        return None
    dim = ir.argument(node, 1, "dim", 0) % len(shape)
    first = max(start + shape[dim], 0) if start < 0 else start
    return Part(whole, dim, first, first + own[dim])


def _split_off(node: fx.Node) -> Part | None:
    split = _operand(node)
    whole = _operand(split)
    shape, sizes = ir.shape(whole), [layout.sizes for layout in ir.layouts(split)]
    if shape is None:
        return None
    dim = ir.argument(split, 2, "dim", 0) % len(shape)
    number = node.args[1]
    assert isinstance(number, int), node
    start = sum(size[dim] for size in sizes[:number])
    return Part(whole, dim, start, start + sizes[number][dim])


def is_returned(node: fx.Node) -> bool:
    """Whether the graph returns a value, or a view of it."""

    def views(node: fx.Node) -> list[fx.Node]:
        return [user for user in node.users if user.op == "output" or _may_view(user)]

    return any(user.op == "output" for user in reached([node], views))


def _may_view(node: fx.Node) -> bool:
    return ir.is_getitem(node) or ir.is_call(node, *VIEWS, *PARTS, *SPLITS, *RARE_SPLITS, "expand")


def _operand(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def have_one_layout(one: fx.Node, other: fx.Node) -> bool:
    """Whether two values have the same sizes, strides, type and device."""
    a, b = ir.tensor(one), ir.tensor(other)
    if a is None or b is None:
        return False
    return (a.dtype, a.device) == (b.dtype, b.device) and ir.layouts(one) == ir.layouts(other)
