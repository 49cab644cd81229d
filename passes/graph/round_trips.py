"""Round trips: a view of a view that has the first shape again is the tensor itself.

Code that writes in place to a view of a stream leaves views back and forth between the writes::

    %a = view(%x, [2, 12, 16])
    %b = slice_scatter(%a, %one, 1, 0, 3)
    %c = view(%b, [2, 3, 4, 16])
    %d = view(%c, [2, 12, 16])                  ->      %d is %b
    %e = view(%x, [2, 12, 16])                  ->      %e is %a

So the writes are one chain (``unscatter``). The views may also exchange dimensions, as where tokens
are a view of a picture with its channels first.
"""

from __future__ import annotations

import torch
from torch import fx

from . import ir
from .ops import REORDERS, RESHAPES, UNIT_DIMS
from .rejoin import have_one_layout, is_returned

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
    views: dict[fx.Node, _View] = {}
    shapes: dict[fx.Node, list[fx.Node]] = {}  # value -> it and all views of it
    for node in calls:
        if (view := _view_of(node, views)) is None:
            continue
        views[node] = view
        known = shapes.setdefault(view.origin, [view.origin])
        views.setdefault(view.origin, _View.of(view.origin))
        same = (other for other in known if views[other].equals(view))
        found = next((other for other in same if have_one_layout(other, node)), None)
        if found is None or is_returned(node):
            known.append(node)
        else:
            node.replace_all_uses_with(found)
            count += 1
    if count:
        graph.eliminate_dead_code(ir.must_stay)
        graph_module.recompile()
    return count


class _View:
    """Which elements of a value a view has, and in which order.

    Attributes:
        origin: the value.
        order: a tensor without memory that views row-major elements as the view does.
    """

    def __init__(self, origin: fx.Node, order: torch.Tensor) -> None:
        self.origin = origin
        self.order = order

    @staticmethod
    def of(origin: fx.Node) -> _View:
        """A value as a view of itself."""
        return _View(origin, torch.empty(ir.shape(origin) or (), device="meta"))

    def equals(self, other: _View) -> bool:
        """Whether another view of the same value has the same elements in the same order."""
        one, two = self.order, other.order
        strides = zip(one.shape, one.stride(), two.stride(), strict=False)
        return one.shape == two.shape and all(a == b for size, a, b in strides if size > 1)


def _view_of(node: fx.Node, views: dict[fx.Node, _View]) -> _View | None:
    """What a node views; None if it is no view that only reshapes and exchanges dimensions."""
    if not ir.is_call(node, *_IN_ORDER, *REORDERS):
        return None
    operand, shape = node.all_input_nodes[0], ir.shape(node)
    before, now = ir.tensor(operand), ir.tensor(node)
    if before is None or now is None or shape is None:
        return None
    if before.dtype != now.dtype:  # the same bits as other numbers
        return None
    source = views.get(operand) or _View.of(operand)
    if ir.is_call(node, *REORDERS):
        assert callable(node.target)
        return _View(source.origin, node.target(source.order, *node.args[1:], **node.kwargs))
    try:
        return _View(source.origin, source.order.view(shape))
    except RuntimeError:  # it joins dimensions that lie apart in the value
        whole = _View.of(operand)
        return _View(operand, whole.order.view(shape))
