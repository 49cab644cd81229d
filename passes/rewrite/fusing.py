"""Fusing: ops that multiply and add in one are made again before the inner compiler gets them.

The capture has taken them apart (``passes.graph.fused``). Before, in a graph or in a branch::

    %m = mul(%o, %gate)
    %y = add(%x, %m)

After::

    %y = addcmul(%x, %o, %gate)

What a branch yields stays apart: if ``%m`` is what a site caches, the addition is outside.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from pab_compile.passes.errors import InvariantError
from pab_compile.passes.graph.fused import count_apart, put_together, take_apart
from pab_compile.passes.graph.outline import copy_graph

from .broadcast import StepBranch, branches
from .verify import count_ops, verify


def fuse_sums(graph_module: fx.GraphModule) -> tuple[fx.GraphModule, int]:
    """Put sums together that were taken apart, in a graph and in its branches.

    Args:
        graph_module: a graph before it is cut into pieces; not modified.

    Returns:
        The rewritten graph module and the number of sums. Without any, it is the given graph.
    """
    return _rewritten(graph_module, put_together)


def num_apart(graph_module: fx.GraphModule) -> int:
    """How many sums of the model are in parts, in a graph and in its branches."""
    computes = (branch.compute for _, branch in branches(graph_module))
    return sum(map(count_apart, (graph_module, *computes)))


def verify_fused(after: fx.GraphModule, before: fx.GraphModule) -> None:
    """Check that a graph with fused sums is the graph that it came from, taken apart.

    Raises:
        InvariantError: it is not, or it is not well formed.
    """
    apart, _ = _rewritten(after, take_apart)
    verify(apart, before)
    if [b.starts for _, b in branches(after)] != [b.starts for _, b in branches(before)]:
        raise InvariantError("a branch lost the start of a stretch")
    if count_ops(after).total() >= count_ops(before).total():
        raise InvariantError("no sum was put together")


def _rewritten(
    graph_module: fx.GraphModule, rewrite: Callable[[fx.GraphModule], int]
) -> tuple[fx.GraphModule, int]:
    whole = copy_graph(graph_module)
    count = rewrite(whole)
    for call, branch in branches(whole):
        compute = copy_graph(branch.compute)
        if num := rewrite(compute):
            fused = StepBranch(branch.site, compute, branch.starts)
            whole.add_submodule(str(call.target), fused)
            count += num
    return (whole, count) if count else (graph_module, 0)
