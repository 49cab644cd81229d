"""Open sizes: a captured graph for all sizes that Dynamo leaves open.

Dynamo makes a size a symbol when it changes. A captured graph has the numbers of one call in its
place, so that every pass sees numbers. A number that follows from an open size remembers how
(``passes.graph.size``, ``passes.graph.unify``)::

    %v = view(%x, [2, 30, 64])     # 30 knows s0 // 4

Pieces are opened again before they are compiled (``passes.graph.opening``). Conditions that passes
and the inner compiler met on the way decide which other sizes the result is right for. Dynamo
itself checks what the model and torch's own functions decide by sizes: it computed with symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch import fx
from torch.utils import _pytree as pytree

from . import ir
from .inputs import dynamo_name
from .size import Conditions, Size
from .tracing import fake_mode, module_of, more_symbols, symbolic_mode

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

_LEAST = 2  # torch specialises to sizes of 0 and 1


class NotOpenError(Exception):
    """A graph cannot be compiled for open sizes."""


@dataclass(frozen=True)
class SizeInputs:
    """Where the open sizes of a Dynamo graph are among its inputs.

    Attributes:
        names: Dynamo's name of every open size.
        places: per open size, the position of the number that Dynamo passes.
        sources: per open size, Dynamo's expression for where it comes from.
        numbers: the positions of all numbers that follow from them. Dynamo may pass one size twice.
    """

    names: tuple[str, ...]
    places: tuple[int, ...]
    sources: tuple[str, ...]
    numbers: tuple[int, ...]

    @staticmethod
    def of(dynamo_graph: fx.GraphModule) -> SizeInputs:
        """The open sizes of a graph. There are none if one is not passed as a number."""
        found: dict[str, int] = {}
        needed: set[str] = set()
        numbers: list[int] = []
        inputs = ir.placeholders(dynamo_graph.graph)
        for position, node in enumerate(inputs):
            example = ir.example(node)
            if isinstance(example, torch.SymInt):
                numbers.append(position)
            if isinstance(example, torch.SymInt) and example.node.expr.is_Symbol:
                found.setdefault(str(example.node.expr), position)
            needed.update(str(symbol) for symbol in symbols_of(example))
        if not needed <= found.keys():
            return SizeInputs((), (), (), ())
        places = tuple(found.values())
        sources = tuple(dynamo_name(inputs[place]) for place in places)
        return SizeInputs(tuple(found), places, sources, tuple(numbers))

    def values(self, args: Sequence[Any]) -> tuple[int, ...]:
        """The sizes of a call."""
        return tuple(int(args[place]) for place in self.places)


def symbols_of(example: Any) -> set[sympy.Symbol]:
    """The symbols in a number, or in the layout of a tensor."""
    numbers: list[Any] = [example]
    if isinstance(example, torch.Tensor):
        numbers = [*example.shape, *example.stride(), example.storage_offset()]
    symbolic = (number for number in numbers if isinstance(number, torch.SymInt))
    return {symbol for number in symbolic for symbol in number.node.expr.free_symbols}


class OpenSizes(Conditions):
    """The open sizes of one captured graph, with the conditions for what is made of it.

    Args:
        mode: makes the fake tensors with symbolic sizes.
        symbols: one per open size.
        given: the sizes that the graph is closed at.

    Attributes:
        mode: as given.
        num_own: how many of the symbols are of the graph itself. The others are of earlier graphs
            of the same forward, which the graph is analysed with.
    """

    def __init__(
        self, mode: FakeTensorMode, symbols: Sequence[sympy.Symbol], given: Sequence[int]
    ) -> None:
        super().__init__(symbols, given)
        self.mode = mode
        self.num_own = len(self.symbols)
        self._known: dict[tuple[int, ...], tuple[tuple[int, int], bool]] = {}

    @staticmethod
    def begin(names: Sequence[str], given: Sequence[int]) -> OpenSizes:
        """Symbols for some open sizes.

        Raises:
            NotOpenError: one of them is 0 or 1.
        """
        if min(given, default=_LEAST) < _LEAST:
            raise NotOpenError("an open size is below 2")
        mode, symbols = symbolic_mode(names, given)
        return OpenSizes(mode, symbols, given)

    def extend(self, given: Sequence[int]) -> None:
        """Add the open sizes of the earlier graphs of a forward, before anything is compared."""
        names = [f"earlier_{number}" for number in range(len(given))]
        self.symbols += more_symbols(self.mode, names, given)
        self.given += tuple(given)

    @property
    def _env(self) -> ShapeEnv:
        env = self.mode.shape_env
        assert env is not None
        return env

    def numbers(self) -> list[torch.SymInt]:
        """The open sizes as inputs of a trace."""
        return [self.number(symbol) for symbol in self.symbols]  # type: ignore[misc]

    def number(self, expression: sympy.Expr) -> int | torch.SymInt:
        """A number that follows from the open sizes, for torch."""
        if expression.is_number:
            return int(expression)
        hint = self.at(expression, self.given)
        return self._env.create_symintnode(expression, hint=hint)  # type: ignore[return-value]

    def tensor(self, node: fx.Node) -> Any:
        """A fake tensor with symbolic sizes for a node that yields one tensor."""
        like, layout = ir.tensor(node), ir.layouts(node)[0]
        assert like is not None, node
        sizes, strides = (tuple(map(self.symbolic, row)) for row in layout)
        with self.mode:
            return torch.empty_strided(sizes, strides, dtype=like.dtype, device=like.device)

    def example_at(self, symbolic: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """A fake tensor for other sizes in the place of one with symbolic sizes."""
        shape, strides = (self.resized(n, sizes) for n in (symbolic.shape, symbolic.stride()))
        with self.mode:
            return torch.empty_strided(shape, strides, dtype=symbolic.dtype, device=symbolic.device)

    def argument(self, leaf: Any) -> Any:
        """What an op gets with symbolic sizes in the place of a node or a size."""
        if isinstance(leaf, fx.Node):
            return self.tensor(leaf)
        return self.symbolic(leaf) if isinstance(leaf, Size) else leaf

    def closed(self, number: Any) -> Any:
        """A symbolic number as a number that remembers how it follows from the open sizes.

        Raises:
            NotOpenError: it is no integer.
        """
        if isinstance(number, torch.SymBool):
            return bool(number)  # torch notes the condition
        if isinstance(number, torch.SymFloat):
            raise NotOpenError("a number that is no integer follows from a size")
        return self.size(number.node.expr) if isinstance(number, torch.SymInt) else number

    def layouts(self, value: Any) -> list[ir.Layout]:
        """Layouts of one or several fake tensors with symbolic sizes."""
        several = value if isinstance(value, (list, tuple)) else [value]
        return [
            ir.Layout(tuple(map(self.closed, each.shape)), tuple(map(self.closed, each.stride())))
            for each in several
            if isinstance(each, torch.Tensor)
        ]

    def symbolic(self, number: int) -> int | torch.SymInt:
        """The symbolic number that a size remembers; any other number itself."""
        return self.number(number.expression) if isinstance(number, Size) else number

    def admits(self, sizes: Sequence[int]) -> bool:
        """Whether what was made so far is right for other sizes. It is asked at every step."""
        key, torchs = tuple(sizes), self._env.guards
        counts = len(torchs), len(self.found)
        known = self._known.get(key)
        if known is None:
            known = (0, 0), self._are_in_range(key)
        before, admitted = known
        if before != counts:
            new = torchs[before[0] :]
            admitted = admitted and all(self._holds(each.expr, key) for each in new)
            admitted = admitted and self.hold(key, before[1])
        self._known[key] = counts, admitted
        return admitted

    def _are_in_range(self, sizes: Sequence[int]) -> bool:
        ranges = self._env.var_to_range
        pairs = zip(self.symbols, sizes, strict=True)
        return all(ranges[symbol].lower <= size <= ranges[symbol].upper for symbol, size in pairs)

    def _holds(self, guard: Any, sizes: Sequence[int]) -> bool:
        known = dict(zip(self.symbols, map(sympy.Integer, sizes), strict=True))
        return guard.xreplace(known) == sympy.true

    def resized(self, numbers: Sequence[Any], sizes: Sequence[int]) -> list[int]:
        """Symbolic sizes or strides of a tensor, for other sizes."""
        return [
            self.at(number.node.expr, sizes) if isinstance(number, torch.SymInt) else number
            for number in numbers
        ]


def resize(captured: fx.GraphModule, sizes: Sequence[int]) -> None:
    """Let the layouts of a graph be those for other sizes, to count bytes and operations.

    Args:
        captured: a closed graph with open sizes, that no pass works on any more. Facts about its
            nodes are changed.
        sizes: one number per open size.
    """
    known: dict[Any, int] = {}

    def resized(number: int) -> int:
        if not isinstance(number, Size):
            return number
        if number.expression not in known:
            known[number.expression] = number.conditions.at(number.expression, sizes)
        return known[number.expression]

    for node in captured.graph.nodes:
        counted = [tuple(map(resized, layout.sizes)) for layout in ir.layouts(node)]
        ir.set_counted_sizes(node, counted)


def renumber(node: fx.Node, number: Callable[[Size], int]) -> None:
    """Give a node other numbers in the place of its sizes.

    Args:
        node: a copy of a node of a closed graph with open sizes; changed in place.
        number: what takes the place of a size.
    """

    def other(leaf: Any) -> Any:
        return number(leaf) if isinstance(leaf, Size) else leaf

    node.args, node.kwargs = pytree.tree_map(other, (node.args, node.kwargs))
    known = ir.layouts(node)
    if not any(isinstance(n, Size) for layout in known for row in layout for n in row):
        return
    found = [ir.Layout(*(tuple(map(other, row)) for row in layout)) for layout in known]
    rows = iter(found)

    def sized(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        sizes, strides = (tuple(map(int, row)) for row in next(rows))
        return torch.empty_strided(sizes, strides, dtype=leaf.dtype, device=leaf.device)

    with fake_mode():
        value = pytree.tree_map(sized, ir.value(node))
    ir.set_value(node, value)
    ir.set_layouts(node, found)


def closed_at(captured: fx.GraphModule, sizes: Sequence[int]) -> fx.GraphModule:
    """A captured graph with open sizes, as if it were captured at other sizes alone."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in captured.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        renumber(copies[node], lambda size: size.conditions.at(size.expression, sizes))
    return module_of(captured, graph)


def compute_value(node: fx.Node) -> None:
    """Record the value of a node that a pass created, computed from those of its operands."""
    target: Any = node.target
    args, kwargs = fx.map_arg((node.args, node.kwargs), ir.value)
    ir.set_value(node, target(*args, **kwargs))
    compute_layouts(node)


def compute_layouts(node: fx.Node) -> None:
    """Record how the sizes of a node that a pass created follow from the open sizes.

    Of an op with several values, all of them are tensors.
    """
    target: Any = node.target
    opened = next(filter(None, map(_opened_of, node.all_input_nodes)), None)
    if opened is None:
        return
    if ir.is_getitem(node):
        source, index = node.args
        ir.set_layouts(node, [ir.layouts(source)[index]])  # type: ignore[arg-type, index]
    else:
        args, kwargs = pytree.tree_map(opened.argument, (list(node.args), dict(node.kwargs)))
        with opened.mode:
            ir.set_layouts(node, opened.layouts(target(*args, **kwargs)))


def _opened_of(node: fx.Node) -> OpenSizes | None:
    numbers = (n for layout in ir.layouts(node) for n in (*layout.sizes, *layout.strides))
    size = next((number for number in numbers if isinstance(number, Size)), None)
    return size.conditions if size is not None else None  # type: ignore[return-value]
