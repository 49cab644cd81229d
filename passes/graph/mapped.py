"""Mapped sections: the parts of a Dynamo graph that ``torch.vmap`` made.

Between its beginning and its end, every tensor stands for one row of a larger one::

    vmap(...)
    %row = add_batch_dim(%x, 0, 1)
    %y = mul(%row, 2)                    one section
    %all = remove_batch_dim(%y, 1, 3, 0)
    end of vmap
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from . import ir

_BEGIN, _END = "_vmap_increment_nesting", "_vmap_decrement_nesting"
_IN_PLACE = ("setitem", "iadd", "isub", "imul", "imatmul", "itruediv", "ifloordiv", "imod", "ipow")
_IN_PLACE += ("iand", "ior", "ixor", "ilshift", "irshift")


def mapped_sections(graph: fx.Graph) -> list[list[fx.Node]]:
    """For every outermost map, the nodes from its beginning to its end."""
    sections: list[list[fx.Node]] = []
    depth = 0
    for node in graph.nodes:
        if ir.is_call(node, _BEGIN):
            depth += 1
            if depth == 1:
                sections.append([])
        if depth:
            sections[-1].append(node)
        depth -= ir.is_call(node, _END)
    return sections


def writes(node: fx.Node) -> bool:
    """Whether a call writes to one of its operands."""
    name = ir.op_name(node)
    is_operator = hasattr(operator, name)  # and_, or_, not_
    is_in_place = name.endswith("_") and not name.endswith("__") and not is_operator
    return is_in_place or name in _IN_PLACE or "out" in node.kwargs


def run_node(node: fx.Node, values: dict[fx.Node, Any]) -> None:
    """Run a call, or read an attribute.

    Args:
        node: what to run.
        values: those of all earlier nodes; it gets that of this one.
    """
    args = fx.map_arg(node.args, values.__getitem__)
    kwargs = fx.map_arg(node.kwargs, values.__getitem__)
    if node.op == "get_attr":  # the result of an earlier section
        values[node] = getattr(node.graph.owning_module, str(node.target))
    elif node.op == "call_method":
        values[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
    else:
        values[node] = node.target(*args, **kwargs)  # type: ignore[operator]


def version_of(value: Any) -> int:
    """How often a value was written to, as far as torch counts it."""
    return value._version if isinstance(value, torch.Tensor) and not value.is_inference() else 0
