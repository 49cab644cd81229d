"""Structure: keys of all that a compiled function depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from . import ir
from .walk import positions, results


def structure_key(graph_module: fx.GraphModule, returned_numbers: bool = True) -> str:
    """Hash of all that a compiled function depends on: ops, arguments, layouts of the inputs.

    Args:
        graph_module: the graph.
        returned_numbers: whether numbers among its outputs count, besides tensors.
    """
    index = positions(graph_module.graph)

    def reference(node: fx.Node) -> str:
        return f"%{index[node]}"

    lines = []
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            lines.append(f"input {ir.layout(node)}")
            continue
        if node.op == "output" and not returned_numbers:
            lines.append(f"output {[index[returned] for returned in ir.outputs(node.graph)]}")
            continue
        target = node.target
        if node.op == "get_attr":
            target = _attribute_key(graph_module, str(target))
        elif node.op == "call_module":
            piece = graph_module.get_submodule(str(target))
            target = structure_key(piece.compute)  # type: ignore[arg-type]
        lines.append(f"{node.op} {target} {_arguments(node, reference)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def call_text(call: fx.Node) -> str:
    """A call as text, with the layouts of its operands in the place of the nodes."""

    def reference(node: fx.Node) -> str:
        if ir.is_subgraph(node):
            owner = node.graph.owning_module
            return _attribute_key(owner, str(node.target)) if owner is not None else node.name
        return f"<{ir.layout(node)}>"

    return f"{call.target} {_arguments(call, reference)}"


def calls_key(calls: Sequence[fx.Node], texts: Sequence[Any]) -> tuple[Any, ...]:
    """A key of all that a function of these calls depends on. Equal keys mean equal functions.

    Args:
        calls: calls of one graph, in order.
        texts: the ``call_text`` of each, or a number for it.
    """
    number = {node: index for index, node in enumerate(calls)}
    outside: dict[fx.Node, int] = {}
    wiring: list[tuple[int, ...]] = []
    for node in calls:
        sources: list[fx.Node] = []
        fx.map_arg((node.args, node.kwargs), sources.append)
        wiring.append(
            tuple(
                number[n] if n in number else -1 - outside.setdefault(n, len(outside))
                for n in sources
                if not ir.is_subgraph(n)
            )
        )
    returned = tuple(number[node] for node in results(calls))
    return tuple(texts), tuple(wiring), returned


def _attribute_key(holder: Any, name: str) -> str:
    held = getattr(holder, name)
    return structure_key(held) if isinstance(held, fx.GraphModule) else str(id(held))


def _arguments(node: fx.Node, reference: Callable[[fx.Node], str]) -> str:
    args = fx.map_arg(node.args, lambda n: _Reference(reference(n)))
    kwargs = fx.map_arg(node.kwargs, lambda n: _Reference(reference(n)))
    return f"{args!r} {kwargs!r}"


class _Reference(str):
    """A node by its number or layout. It prints without quotes, unlike a string."""

    def __repr__(self) -> str:
        return str(self)
