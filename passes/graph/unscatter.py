"""Unscatter: a tensor whose parts are all written anew is the concatenation of what is written.

Code that updates a stream part by part in place leaves a chain of writes::

    %a = slice_scatter(%x, %one, 1, 0, 3)
    %b = slice_scatter(%a, %other, 1, 3, 9)      ->      %b is cat([%one, %other], 1)

A part that is read between two writes, and not written before, is read from the tensor below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx

from . import ir
from .open_sizes import compute_value
from .rejoin import Part, have_one_layout, taken

_WRITE = "slice_scatter"


def unscatter(graph_module: fx.GraphModule) -> int:
    """Replace every chain of writes to all parts of a tensor, if it has a plain layout.

    Args:
        graph_module: a captured graph; modified in place.

    Returns:
        The number of chains that were replaced.
    """
    graph = graph_module.graph
    any_repeated = False
    for node in list(ir.calls(graph)):
        if _is_repeated(node):
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            any_repeated = True
    if any_repeated:
        graph.eliminate_dead_code(ir.must_stay)
    count = 0
    for node in list(ir.calls(graph)):  # so a later chain stands on the concatenation
        if ir.is_call(node, "slice", "narrow"):
            _read_below(node)
        elif (written := _all_parts(node)) is not None:
            count += _concatenate(node, written)
    graph.eliminate_dead_code(ir.must_stay)
    graph_module.recompile()
    return count


def _concatenate(node: fx.Node, written: Sequence[tuple[Part, fx.Node]]) -> bool:
    """Replace the last write of a chain, unless its layout is another one."""
    values, graph = [value for _, value in written], node.graph
    with graph.inserting_before(node):
        joined = graph.call_function(torch.ops.aten.cat.default, (values, written[0][0].dim))
    ir.copy_facts(joined, node)
    compute_value(joined)
    if not have_one_layout(joined, node):
        graph.erase_node(joined)
        return False
    node.replace_all_uses_with(joined)
    return True


def written_part(node: fx.Node) -> Part | None:
    """The part of its first operand that a node writes; None if it does anything else."""
    shape = ir.shape(node)
    if not ir.is_call(node, _WRITE) or shape is None or ir.argument(node, 5, "step", 1) != 1:
        return None
    base, value = node.args[0], node.args[1]
    start = ir.argument(node, 3, "start") or 0
    own = ir.shape(value) if isinstance(value, fx.Node) else None
    if not isinstance(base, fx.Node) or own is None or not isinstance(start, int):
        return None
    dim = ir.argument(node, 2, "dim", 0) % len(shape)
    first = max(start + shape[dim], 0) if start < 0 else start
    return Part(base, dim, first, first + own[dim])


def _read_below(node: fx.Node) -> None:
    """Read a part from the tensor below all writes, if none of them touches it."""
    part = taken(node, ir.argument(node, 1, "dim", 0) % len(ir.shape(node) or (0,)))
    base = node.args[0]
    if part is None or part.whole is not base or not isinstance(base, fx.Node):
        return
    below = base
    while (written := written_part(below)) is not None:
        if written.dim != part.dim or not _are_apart(part, written):
            return
        below = written.whole
    if below is not base and ir.layouts(below) == ir.layouts(base):
        node.replace_input_with(base, below)


def _is_repeated(node: fx.Node) -> bool:
    """Whether a node writes what is there: the value, or what was read where it was written."""
    part = written_part(node)
    below = written_part(part.whole) if part is not None else None
    if part is None or below is None:
        return False
    value = node.args[1]
    assert isinstance(value, fx.Node)
    place = (part.dim, part.start, part.stop)
    if place != (below.dim, below.start, below.stop):
        return False
    read = taken(value, part.dim)
    is_read = read is not None and (read.whole, read.start, read.stop) == (part.whole, *place[1:])
    return is_read or value is part.whole.args[1]


def _are_apart(one: Part, other: Part) -> bool:
    return one.stop <= other.start or other.stop <= one.start


def _all_parts(node: fx.Node) -> list[tuple[Part, fx.Node]] | None:
    """What is written to the parts of a tensor, in order; None if a part stays as it was."""
    shape, found = ir.shape(node), sorted(_writes(node), key=lambda write: write[0].start)
    place = 0
    for part, _ in found:
        if part.start != place:
            return None
        place = part.stop
    complete = shape is not None and len(found) > 1 and place == shape[found[0][0].dim]
    return found if complete else None


def _writes(node: fx.Node) -> Iterator[tuple[Part, fx.Node]]:
    """The writes of a chain along one dimension, the last one first."""
    first = written_part(node)
    part, is_last = first, True
    while part is not None and first is not None and part.dim == first.dim:
        if not is_last and len(node.users) != 1:
            return
        value = node.args[1]
        assert isinstance(value, fx.Node)
        one, other = ir.tensor(value), ir.tensor(node)
        if one is None or other is None or one.dtype != other.dtype:
            return
        yield part, value
        node, is_last = part.whole, False
        part = written_part(node)
