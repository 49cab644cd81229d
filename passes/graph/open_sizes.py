"""Open sizes: a captured graph for all sizes that Dynamo leaves open.

Dynamo makes a size a symbol when it changes. The graph is traced with these symbols, and then
closed at the sizes of one call, so that every pass sees numbers. A number that follows from an open
size remembers how (``passes.graph.size``)::

    %v = view(%x, [2, s0 // 4, 64])     ->     %v = view(%x, [2, 30, 64])     # 30 knows s0 // 4

Pieces are opened again before they are compiled (``passes.graph.opening``). Conditions that the
trace and the inner compiler met on the way decide which other sizes the result is right for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch import fx
from torch.utils import _pytree as pytree

from . import ir
from .inputs import Inputs
from .size import Conditions, Size
from .tracing import symbolic_mode

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
    """

    names: tuple[str, ...]
    places: tuple[int, ...]

    @staticmethod
    def of(dynamo_graph: fx.GraphModule) -> SizeInputs:
        """The open sizes of a graph. There are none if one is not passed as a number."""
        found: dict[str, int] = {}
        needed: set[str] = set()
        for position, node in enumerate(ir.placeholders(dynamo_graph.graph)):
            example = ir.example(node)
            if isinstance(example, torch.SymInt) and example.node.expr.is_Symbol:
                found.setdefault(str(example.node.expr), position)
            needed.update(str(symbol) for symbol in _symbols_of(example))
        if not needed <= found.keys():
            return SizeInputs((), ())
        return SizeInputs(tuple(found), tuple(found.values()))

    def values(self, args: Sequence[Any]) -> tuple[int, ...]:
        """The sizes of a call."""
        return tuple(int(args[place]) for place in self.places)


def _symbols_of(example: Any) -> set[sympy.Symbol]:
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
    """

    def __init__(
        self, mode: FakeTensorMode, symbols: Sequence[sympy.Symbol], given: Sequence[int]
    ) -> None:
        super().__init__(symbols, given)
        self.mode = mode
        self._known: dict[tuple[int, ...], tuple[int, int, bool]] = {}

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

    def fake(self, example: Any, tensor: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        """A fake tensor of open sizes.

        Args:
            example: Dynamo's fake tensor of the input, in Dynamo's own symbols.
            tensor: the input.
            names: Dynamo's name of every open size.
        """
        if not _symbols_of(example):
            return self.mode.from_tensor(tensor, static_shapes=True)
        own = dict(zip(names, self.symbols, strict=True))

        def ours(number: int | torch.SymInt) -> int | torch.SymInt:
            if not isinstance(number, torch.SymInt):
                return number
            theirs = number.node.expr
            named = {symbol: own[str(symbol)] for symbol in theirs.free_symbols}
            return self.number(theirs.xreplace(named))

        if example.storage_offset() != 0:
            raise NotOpenError("an input is a part of a larger tensor")
        sizes, strides = [ours(n) for n in example.shape], [ours(n) for n in example.stride()]
        with self.mode:
            return torch.empty_strided(sizes, strides, dtype=tensor.dtype, device=tensor.device)

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

    def admits(self, sizes: Sequence[int]) -> bool:
        """Whether what was made so far is right for other sizes."""
        key, torchs = tuple(sizes), self._env.guards
        counts = len(torchs), len(self.found)
        *before, admitted = self._known.get(key, (0, 0, self._are_in_range(key)))
        if (*before,) != counts or key not in self._known:
            new = torchs[before[0] :]
            admitted = admitted and all(self._holds(each.expr, key) for each in new)
            admitted = admitted and self.hold(key, before[1])
            self._known[key] = (*counts, admitted)
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


def close(captured: fx.GraphModule, opened: OpenSizes) -> None:
    """Put the numbers of one call in the place of symbolic sizes.

    Args:
        captured: a graph that was traced with symbolic sizes; modified in place. Its inputs that
            are numbers go.
        opened: its open sizes.

    Raises:
        NotOpenError: an op takes a number that is no integer and follows from a size.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    fixed = FakeTensorMode(allow_non_fake_inputs=True)
    graph = captured.graph
    numbers: dict[fx.Node, Any] = {}

    def closed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return opened.closed(value)
        sizes = [int(opened.closed(n)) for n in value.shape]
        strides = [int(opened.closed(n)) for n in value.stride()]
        return torch.empty_strided(sizes, strides, dtype=value.dtype, device=value.device)

    with fixed:
        for node in graph.nodes:
            node.args = fx.map_arg(node.args, lambda n: numbers.get(n, n))
            node.kwargs = fx.map_arg(node.kwargs, lambda n: numbers.get(n, n))
            value = ir.value(node)
            if isinstance(value, (torch.SymInt, torch.SymBool, torch.SymFloat)):
                numbers[node] = opened.closed(value) if node.users else None
                continue
            ir.set_value(node, pytree.tree_map(closed, value))
            _set_open_value(node, value, opened)
    for node in reversed(numbers):
        if not node.users:
            graph.erase_node(node)
    ir.set_open_sizes(captured, opened)
    captured.recompile()


def resize(captured: fx.GraphModule, opened: OpenSizes, sizes: Sequence[int]) -> None:
    """Let the values of a graph be those for other sizes. Its numbers stay as they are.

    Args:
        captured: a closed graph; the facts about its nodes are changed.
        opened: its open sizes.
        sizes: one number per open size.
    """
    known: dict[Any, int] = {}

    def resized(numbers: Sequence[Any]) -> tuple[int, ...]:
        symbolic = {n.node.expr for n in numbers if isinstance(n, torch.SymInt)}
        known.update({each: opened.at(each, sizes) for each in symbolic.difference(known)})
        return tuple(known[n.node.expr] if isinstance(n, torch.SymInt) else n for n in numbers)

    for node in captured.graph.nodes:
        if (value := ir.open_value(node)) is not None:
            layouts = [ir.Layout(resized(t.shape), resized(t.stride())) for t in _tensors(value)]
            ir.set_layouts(node, layouts)


def compute_value(node: fx.Node) -> None:
    """Record the value of a node that a pass created, computed from those of its operands."""
    target: Any = node.target
    args, kwargs = fx.map_arg((node.args, node.kwargs), ir.value)
    ir.set_value(node, target(*args, **kwargs))
    opened = next(filter(None, map(_opened_of, node.all_input_nodes)), None)
    if opened is not None and all(ir.open_value(n) is not None for n in node.all_input_nodes):
        args, kwargs = fx.map_arg((node.args, node.kwargs), ir.open_value)
        with opened.mode:
            _set_open_value(node, target(*args, **kwargs), opened)


def _set_open_value(node: fx.Node, value: Any, opened: OpenSizes) -> None:
    ir.set_open_value(node, value, [_layout(tensor, opened) for tensor in _tensors(value)])


def _opened_of(node: fx.Node) -> OpenSizes | None:
    numbers = (n for layout in ir.layouts(node) for n in (*layout.sizes, *layout.strides))
    size = next((number for number in numbers if isinstance(number, Size)), None)
    return size.conditions if size is not None else None  # type: ignore[return-value]


def _tensors(value: Any) -> list[torch.Tensor]:
    several = value if isinstance(value, (list, tuple)) else [value]
    return [each for each in several if isinstance(each, torch.Tensor)]


def _layout(tensor: torch.Tensor, opened: OpenSizes) -> ir.Layout:
    sizes = tuple(opened.closed(number) for number in tensor.shape)
    return ir.Layout(sizes, tuple(opened.closed(number) for number in tensor.stride()))


def open_inputs(
    dynamo_graph: fx.GraphModule, inputs: Inputs, args: Sequence[Any]
) -> tuple[OpenSizes, list[Any]]:
    """The inputs of a trace with open sizes: a symbol for each open size, and fake tensors.

    Raises:
        NotOpenError: the graph has no open sizes, or holds what cannot be traced with them.
    """
    where = SizeInputs.of(dynamo_graph)
    if not where.places or inputs.wrapped:
        raise NotOpenError("the graph has no open sizes")
    opened = OpenSizes.begin(where.names, where.values(args))
    symbol = dict(zip(where.places, opened.numbers(), strict=True))
    nodes = ir.placeholders(dynamo_graph.graph)
    given: list[Any] = []
    for position, (node, arg) in enumerate(zip(nodes, args, strict=True)):
        if position in symbol:
            given.append(symbol[position])
        elif not inputs.is_number[position]:
            given.append(opened.fake(ir.example(node), arg, where.names))
    return opened, given
