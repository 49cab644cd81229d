"""Opening: pieces of a closed graph are given their open sizes back (``passes.graph.open_sizes``).

An opened piece takes the open sizes as its first inputs, and computes from them what its ops need::

    view(%x, [2, 30, 64])     ->     %n = s0 // 4;  view(%x, [2, %n, 64])

Its values are propagated through the pieces, from the inputs of the whole graph on. So a number
that a pass made, and that does not follow from the sizes where it should, becomes a condition. So
does every size that differs from what the closed graph says of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils import _pytree as pytree

from . import ir
from .open_sizes import NotOpenError, OpenSizes
from .size import Size
from .structure import structure_key
from .tracing import module_of

Origins = Mapping[fx.Node, fx.Node]


@dataclass(frozen=True, eq=False)
class OpenPiece:
    """A piece for open sizes.

    Attributes:
        closed: takes tensors only.
        graph_module: takes the open sizes, then tensors.
        key: hash of all that a compiled function depends on.
        outputs: its values, with symbolic sizes.
        opened: the open sizes.
    """

    closed: fx.GraphModule
    graph_module: fx.GraphModule
    key: str
    outputs: Sequence[Any]
    opened: OpenSizes

    @property
    def examples(self) -> list[Any]:
        """Its inputs, with symbolic sizes."""
        return [ir.value(node) for node in ir.placeholders(self.graph_module.graph)]

    def key_at(self, sizes: Sequence[int]) -> str:
        """The key of the same piece of a graph that was captured at these sizes alone."""
        return structure_key(self.closed_at(sizes))

    def closed_at(self, sizes: Sequence[int]) -> fx.GraphModule:
        """The piece with numbers in the place of the open sizes."""

        def resized(argument: Any) -> Any:
            if isinstance(argument, Size):
                return self.opened.at(argument.expression, sizes)
            return copies[argument] if isinstance(argument, fx.Node) else argument

        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        given = iter(self.examples[len(self.opened.symbols) :])
        for node in self.closed.graph.nodes:
            args, kwargs = pytree.tree_map(resized, (list(node.args), dict(node.kwargs)))
            copies[node] = graph.create_node(node.op, node.target, tuple(args), kwargs, node.name)
            if node.op == "placeholder":
                ir.set_value(copies[node], self.opened.example_at(next(given), sizes))
        return module_of(self.closed, graph)


class Opener:
    """Opens the pieces of one graph, in the order in which they run.

    Args:
        opened: the open sizes of the graph.
    """

    def __init__(self, opened: OpenSizes) -> None:
        self.opened = opened
        self._outputs: dict[str, Sequence[Any]] = {}

    def inputs_of(self, graph_module: fx.GraphModule) -> dict[fx.Node, Any]:
        """The inputs and constants of a graph, with symbolic sizes."""
        graph, mode = graph_module.graph, self.opened.mode
        values = {node: self.opened.tensor(node) for node in ir.placeholders(graph)}
        for node in graph.find_nodes(op="get_attr"):
            held = getattr(graph_module, str(node.target))
            values[node] = mode.from_tensor(held, static_shapes=True)
        return values

    def piece(self, closed: fx.GraphModule, inputs: Sequence[Any]) -> OpenPiece | None:
        """A piece for open sizes; None if the piece depends on none of them.

        Args:
            closed: the piece.
            inputs: its inputs, with symbolic sizes.
        """
        if not _is_open(closed, inputs):
            return None
        with _refusing():
            opened, origins = self._with_sizes(closed, inputs)
        key = structure_key(opened)
        if key not in self._outputs:
            examples = [ir.value(node) for node in ir.placeholders(opened.graph)]
            self._outputs[key] = self._run(opened, examples, origins)
        return OpenPiece(closed, opened, key, self._outputs[key], self.opened)

    def values_of(self, closed: fx.GraphModule, inputs: Sequence[Any]) -> Sequence[Any]:
        """The values of a piece that depends on no open size."""
        key = "closed " + structure_key(closed)
        if key not in self._outputs:
            origins = {node: node for node in closed.graph.nodes}
            self._outputs[key] = self._run(closed, inputs, origins)
        return self._outputs[key]

    def _with_sizes(
        self, closed: fx.GraphModule, inputs: Sequence[Any]
    ) -> tuple[fx.GraphModule, Origins]:
        """The graph with open sizes, and the nodes that its nodes stand for."""
        graph = fx.Graph()
        numbers: dict[sympy.Basic, Any] = {}
        for symbol, number in zip(self.opened.symbols, self.opened.numbers(), strict=True):
            node = graph.placeholder(str(symbol))
            ir.set_value(node, number)
            numbers[symbol] = fx.Proxy(node)
        given = iter(inputs)
        copies: dict[fx.Node, fx.Node] = {}

        def reopened(argument: Any) -> Any:
            if isinstance(argument, Size):
                return _computed(argument.expression, numbers)
            return copies[argument] if isinstance(argument, fx.Node) else argument

        for node in closed.graph.nodes:
            if node.op == "output":
                graph.output(tuple(copies[n] for n in node.args[0]))
                continue
            args, kwargs = pytree.tree_map(reopened, (list(node.args), dict(node.kwargs)))
            copies[node] = graph.create_node(node.op, node.target, tuple(args), kwargs, node.name)
            if node.op == "placeholder":
                ir.set_value(copies[node], next(given))
        return module_of(closed, graph), {copy: node for node, copy in copies.items()}

    def _run(
        self, graph_module: fx.GraphModule, inputs: Sequence[Any], origins: Origins
    ) -> Sequence[Any]:
        from torch._dispatch.python import enable_python_dispatcher

        with _refusing(), torch.no_grad(), self.opened.mode, enable_python_dispatcher():
            return _Checked(graph_module, origins, self.opened).run(*inputs)


@contextmanager
def _refusing() -> Iterator[None]:
    """Whatever fails here, the piece is still right for the sizes that it was made for."""
    try:
        yield
    except Exception as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise NotOpenError(f"a piece cannot be opened: {words[0]}") from error


class _Checked(fx.Interpreter):
    """Runs a piece with symbolic sizes, and compares every size with what is known of it."""

    def __init__(self, graph_module: fx.GraphModule, origins: Origins, opened: OpenSizes) -> None:
        super().__init__(graph_module)
        self._origins = origins
        self._opened = opened

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function" and n in self._origins:
            pairs = zip(ir.layouts(self._origins[n]), self._opened.layouts(result), strict=True)
            for known, found in pairs:
                if known.sizes != found.sizes:  # the comparison is a condition
                    raise NotOpenError(f"{n} has other sizes: {found.sizes}, not {known.sizes}")
        return result


def _is_open(closed: fx.GraphModule, inputs: Sequence[Any]) -> bool:
    """Whether a piece, or the size of an input of it, depends on an open size."""
    numbers = [n for t in inputs if isinstance(t, torch.Tensor) for n in (*t.shape, *t.stride())]
    if any(isinstance(number, torch.SymInt) for number in numbers):
        return True
    leaves = (leaf for n in closed.graph.nodes for leaf in pytree.tree_leaves((n.args, n.kwargs)))
    return any(isinstance(leaf, Size) for leaf in leaves)


def _computed(expression: sympy.Expr, numbers: dict[sympy.Basic, Any]) -> fx.Node:
    """The node that computes a number from the open sizes; each is computed once."""
    from torch.utils._sympy.interp import sympy_interp
    from torch.utils._sympy.reference import PythonReferenceAnalysis

    if expression not in numbers:
        known = {symbol: numbers[symbol] for symbol in expression.free_symbols}
        numbers[expression] = sympy_interp(PythonReferenceAnalysis, known, expression)  # type: ignore[arg-type]
    return numbers[expression].node
