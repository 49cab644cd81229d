"""Axis rules of collectives, for models that are already parallel: a graph has one rank's part.

The positions of the other ranks are a factor without a name, outside the positions of this rank.
The axis still gets its name: frames gathered from ``N`` ranks are ``N`` times those of one rank.
"""

from __future__ import annotations

from torch import fx

from pab_compile.passes.graph import ir

from .algebra import regroup_loosely
from .atoms import fresh, size
from .trace import Dims, Trace, anew, first, output_shape


def exchange(trace: Trace, node: fx.Node) -> Dims:
    """``all_to_all_single``: the outer factor of the first dimension gives way to the ranks."""
    dims, shape = trace.of(first(node)), output_shape(node)
    received, sent = node.args[1:3]
    assert isinstance(received, (list, tuple)) and isinstance(sent, (list, tuple))
    num = len(sent)
    is_even = len(set(map(str, (*received, *sent)))) == 1
    if not is_even or size(dims[0]) % num:
        return (*anew(shape[:1]), *dims[1:])
    found, _ = regroup_loosely(dims[:1], (num, size(dims[0]) // num))
    return ((*fresh(num), *found[1]), *dims[1:])


def gather(trace: Trace, node: fx.Node) -> Dims:
    """``all_gather_into_tensor``: the parts of the ranks one after another."""
    dims = trace.of(first(node))
    return ((*fresh(int(ir.argument(node, 1, "group_size"))), *dims[0]), *dims[1:])
