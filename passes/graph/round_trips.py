"""Round trips: a view of a view that has the first shape again is the tensor itself.

Code that writes in place to a view of a stream leaves views back and forth between the writes::

    %a = view(%x, [2, 12, 16])
    %b = slice_scatter(%a, %one, 1, 0, 3)
    %c = view(%b, [2, 3, 4, 16])
    %d = view(%c, [2, 12, 16])                  ->      %d is %b
    %e = view(%x, [2, 12, 16])                  ->      %e is %a

So the writes are one chain (``unscatter``).
"""

from __future__ import annotations

from torch import fx

from . import ir
from .ops import RESHAPES, UNIT_DIMS
from .rejoin import have_one_layout, is_returned
from .walk import look_through

_IN_ORDER = RESHAPES | UNIT_DIMS  # the elements stay in row-major order


def round_trips(graph_module: fx.GraphModule) -> int:
    """Replace views that are another value already, in a graph that writes to parts of tensors.

    Args:
        graph_module: a captured graph; modified in place.

    Returns:
        The number of views that were replaced.
    """
    graph = graph_module.graph
    calls = list(ir.calls(graph))
    if not any(ir.is_call(node, "slice_scatter") for node in calls):
        return 0
    count = 0
    shapes: dict[fx.Node, list[fx.Node]] = {}  # value -> the same elements in other shapes
    for node in calls:
        if not ir.is_call(node, *_IN_ORDER):
            continue
        origin = look_through(node, _IN_ORDER)
        known = shapes.setdefault(origin, [origin])
        same = next((other for other in known if have_one_layout(other, node)), None)
        if same is None or is_returned(node):
            known.append(node)
        else:
            node.replace_all_uses_with(same)
            count += 1
    if count:
        graph.eliminate_dead_code(ir.must_stay)
        graph_module.recompile()
    return count
