"""Dynamo may read whole numbers from small tensors that the caller passes on the host.

::

    def forward(self, x, grids):  # grids = torch.tensor([[frames, height, width], ...])
        for frames, height, width in grids.tolist(): ...

Such a table of sizes decides shapes, as a tuple of Python numbers does, of which Dynamo makes
constants with a guard. Dynamo alone breaks the graph at a tensor, in every block that reads it.
For this backend the table gets a guard too: a call with other numbers has another graph.

Only tables of whole numbers are read, that is tensors with rows. A timestep has none, and neither
has a number that is counted up. A table that differs from call to call is left to Dynamo after its
first few values: each of them costs a compilation.
"""

from __future__ import annotations

import operator
import weakref
from typing import Any

import torch
from torch import fx

_MAX_ELEMENTS = 256
_MAX_TABLES = 4
_TAKE_PARTS = (operator.getitem, "tolist", "unbind", "select", "reshape", "view", "flatten")


class _Tables:
    """The values of tables, per code that reads them and place of the table."""

    def __init__(self) -> None:
        self._seen: weakref.WeakKeyDictionary[Any, dict[str, set[str]]] = (
            weakref.WeakKeyDictionary()
        )

    def may_be_read(self, code: Any, place: str, values: Any) -> bool:
        """Whether a table had few values so far. These values count from now on."""
        seen = self._seen.setdefault(code, {}).setdefault(place, set())
        if len(seen) < _MAX_TABLES:
            seen.add(repr(values))
        return repr(values) in seen


_tables = _Tables()


def given_numbers(tx: Any, node: fx.Node) -> torch.Tensor | None:
    """The numbers of a node that is a table of the caller or a part of it; None for any other.

    Args:
        tx: Dynamo's tracer. It gets a guard on the whole table.
        node: a node of its graph.
    """
    from torch._dynamo.guards import GuardBuilder, install_guard
    from torch._dynamo.source import AttrSource, CallFunctionNoArgsSource

    table = _table_of(node)
    graph_arg = table.meta.get("grapharg") if table is not None else None
    source: Any = getattr(graph_arg, "source", None)
    given: Any = getattr(graph_arg, "example", None)
    if source is None or not _is_table(given, table):
        return None
    if not _tables.may_be_read(tx.f_code, source.name, given.tolist()):
        return None
    numbers = CallFunctionNoArgsSource(AttrSource(source, "tolist"))
    install_guard(numbers.make_guard(GuardBuilder.EQUALS_MATCH))
    return _part(node, given)


def _table_of(node: fx.Node) -> fx.Node | None:
    """The input that a node is, or is a part of."""
    while node.op != "placeholder":
        sources = node.all_input_nodes
        if node.target not in _TAKE_PARTS or len(sources) != 1 or node.args[0] is not sources[0]:
            return None
        node = sources[0]
    return node


def _is_table(given: Any, node: fx.Node | None) -> bool:
    """Whether an input holds few whole numbers in rows, and nothing wrote to it so far."""
    if type(given) is not torch.Tensor or given.device.type != "cpu" or given.ndim < 2:
        return False
    fake = node.meta.get("example_value") if node is not None else None
    is_whole = not given.is_floating_point() and not given.is_complex()
    is_small = given.numel() <= _MAX_ELEMENTS and given.layout is torch.strided
    return is_whole and is_small and getattr(fake, "_version", 1) == 0


def _part(node: fx.Node, table: torch.Tensor) -> Any:
    """What a node takes of a table."""
    if node.op == "placeholder":
        return table.clone()
    whole = _part(node.all_input_nodes[0], table)
    if node.op == "call_method":
        return getattr(whole, str(node.target))(*node.args[1:], **node.kwargs)
    return node.target(whole, *node.args[1:], **node.kwargs)  # type: ignore[operator]
