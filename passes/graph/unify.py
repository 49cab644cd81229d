"""Unify: what two captures of one model at different sizes say of all sizes.

Both graphs have the same ops. A number that is the same in both is a constant. Any other follows
from the open sizes. It is found among the expressions that Dynamo computed, and their multiples::

    sizes 7            sizes 9             open size s0
    view(%x, [1, 28])  view(%x, [1, 36])   view(%x, [1, 4 * s0])

This takes a fraction of the time of a trace with symbols. Where several expressions give the two
numbers, they must be equal for other sizes too: that is a condition (``passes.graph.size``).
"""

from __future__ import annotations

import hashlib
import operator
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import sympy
import torch
from torch import fx
from torch.utils import _pytree as pytree

from . import ir
from .open_sizes import NotOpenError, OpenSizes, SizeInputs
from .size import Condition
from .walk import positions


def skeleton(captured: fx.GraphModule) -> str:
    """Hash of a captured graph without its numbers, and of the layouts of its weights."""
    index = positions(captured.graph)
    lines: list[str] = []
    for node in captured.graph.nodes:
        names = pytree.tree_map(lambda leaf: _without_number(leaf, index), (node.args, node.kwargs))
        known = node.op == "placeholder" and ir.is_constant_input(node)
        named = ir.source(node) if node.op == "placeholder" else node.target
        lines.append(f"{node.op} {named} {names} {ir.layout(node) if known else ''}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _without_number(leaf: Any, index: dict[fx.Node, int]) -> str:
    if isinstance(leaf, fx.Node):
        return f"%{index[leaf]}"
    is_number = isinstance(leaf, int) and not isinstance(leaf, bool)
    return "#" if is_number else f"{leaf!r}"


_MAX_KNOWN = 8
_MAPS = "_vmap_increment_nesting"
_FROM_NUMBERS = ("tensor", "as_tensor", "asarray", "scalar_tensor", "new_tensor")


class Known(NamedTuple):
    """A captured graph.

    Attributes:
        graph: the graph.
        numbers: Dynamo's expression for a number that was an input -> its value.
    """

    graph: fx.GraphModule
    numbers: Mapping[str, int]


class KnownCaptures:
    """Captured graphs, for as long as they are used elsewhere."""

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[weakref.ref[fx.GraphModule], Mapping[str, int]]]] = {}

    def add(self, known: Known) -> list[Known]:
        """Remember a graph; returns the earlier ones with the same skeleton, the last first."""
        rows = {key: [each for each in row if each[0]()] for key, row in self._found.items()}
        self._found = {key: row[-_MAX_KNOWN:] for key, row in rows.items() if row}
        row = self._found.setdefault(skeleton(known.graph), [])
        alive = [(found(), numbers) for found, numbers in reversed(row)]
        row.append((weakref.ref(known.graph), known.numbers))
        return [Known(graph, numbers) for graph, numbers in alive if graph is not None]


def unify(
    captured: fx.GraphModule,
    others: Iterable[Known],
    dynamo_graph: fx.GraphModule,
    given: Sequence[int],
) -> None:
    """Let the numbers of a captured graph remember how they follow from open sizes.

    Args:
        captured: a graph; modified in place.
        others: graphs with the same ``skeleton``; not modified. Open sizes that are the same in the
            one that differs most stay as they are.
        dynamo_graph: the graph of Dynamo that was captured, with Dynamo's expressions.
        given: the open sizes that it was captured at.

    Raises:
        NotOpenError: there is no such graph, or a number differs and nothing explains how.
    """
    _check_numbers(dynamo_graph)
    where = SizeInputs.of(dynamo_graph)
    opened = OpenSizes.begin(where.names, given)
    own = dict(zip(where.names, opened.symbols, strict=True))
    other, sizes = _furthest(given, others, dynamo_graph, where)
    for symbol, size, size_2 in zip(opened.symbols, given, sizes, strict=True):
        if size == size_2:  # nothing shows what follows from it
            opened.found[Condition(operator.eq, symbol, size, True)] = None
    numbers = _Numbers(opened, sizes, _expressions(dynamo_graph, own))
    _check_constants(captured, other)
    twins = list(zip(captured.graph.nodes, other.graph.nodes, strict=True))
    found = [numbers.arguments(node, twin) for node, twin in twins]
    layouts = [numbers.layouts(node, twin) for node, twin in twins]
    for (node, _), (args, kwargs), known in zip(twins, found, layouts, strict=True):
        node.args, node.kwargs = args, kwargs
        ir.set_layouts(node, known)
    captured.recompile()
    ir.set_open_sizes(captured, opened)


def _check_numbers(dynamo_graph: fx.GraphModule) -> None:
    """Refuse a graph with numbers that two captures cannot explain, even if they agree.

    Raises:
        NotOpenError: a fraction, a truth value or the elements of a tensor follow from a size, or a
            graph inside the graph may hold any of these.
    """
    for node in dynamo_graph.graph.nodes:
        example = ir.example(node)
        if isinstance(node.target, torch._ops.HigherOrderOperator) or ir.is_call(node, _MAPS):
            raise NotOpenError(f"the graph holds another one ({ir.short_name(node.target)})")
        is_other = isinstance(example, (torch.SymFloat, torch.SymBool))
        if is_other and any(_yields_tensors(user) for user in node.users):
            raise NotOpenError("a number that is no integer follows from a size")
        is_number = isinstance(example, torch.SymInt)
        if is_number and any(ir.short_name(user.target) in _FROM_NUMBERS for user in node.users):
            raise NotOpenError("the elements of a tensor follow from a size")


def _yields_tensors(node: fx.Node) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(ir.example(node)))


def _check_constants(captured: fx.GraphModule, other: fx.GraphModule) -> None:
    """Refuse graphs with other constants: some of them follow from a size."""
    for node in captured.graph.find_nodes(op="get_attr"):
        held, twin = (getattr(each, str(node.target)) for each in (captured, other))
        is_tensor = isinstance(held, torch.Tensor) and isinstance(twin, torch.Tensor)
        if held is not twin and not (is_tensor and _are_equal(held, twin)):
            raise NotOpenError(f"the constant {node.target} may follow from a size")


def _are_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    kind, kind_2 = ((t.dtype, t.shape, t.stride(), t.device) for t in (one, other))
    return kind == kind_2 and torch.equal(one, other)


def _furthest(
    given: Sequence[int],
    others: Iterable[Known],
    dynamo_graph: fx.GraphModule,
    where: SizeInputs,
) -> tuple[fx.GraphModule, tuple[int, ...]]:
    """The graph that differs in most open sizes, with its sizes."""
    known = [(each.graph, _sizes_of(each, dynamo_graph, where)) for each in others]
    found = [(graph, sizes) for graph, sizes in known if sizes is not None]
    best = max(found, key=lambda pair: sum(map(operator.ne, pair[1], given)), default=None)
    if best is None or best[1] == tuple(given):
        raise NotOpenError("no other sizes were captured")
    return best


def _sizes_of(
    other: Known, dynamo_graph: fx.GraphModule, where: SizeInputs
) -> tuple[int, ...] | None:
    """The open sizes of another graph: its inputs show them. None if they do not."""
    shown = dict(zip(where.names, map(other.numbers.get, where.sources), strict=True))
    examples = [ir.example(node) for node in ir.placeholders(dynamo_graph.graph)]
    tensors = [each for each in examples if isinstance(each, torch.Tensor)]
    inputs = ir.placeholders(other.graph.graph)
    if len(tensors) != len(inputs):
        return None
    for example, node in zip(tensors, inputs, strict=True):
        for number, size in zip(example.shape, ir.shape(node) or (), strict=True):
            if isinstance(number, torch.SymInt) and number.node.expr.is_Symbol:
                shown[str(number.node.expr)] = int(size)
    sizes = [shown[name] for name in where.names]
    return None if None in sizes else tuple(sizes)  # type: ignore[arg-type]


def _expressions(
    dynamo_graph: fx.GraphModule, own: dict[str, sympy.Symbol]
) -> Iterator[sympy.Expr]:
    """All sizes and numbers that Dynamo computed, in the symbols of the open sizes."""
    seen: set[sympy.Expr] = set()
    for node in dynamo_graph.graph.nodes:
        for leaf in pytree.tree_leaves(ir.example(node)):
            numbers = [*leaf.shape, *leaf.stride()] if isinstance(leaf, torch.Tensor) else [leaf]
            for number in numbers:
                theirs = number.node.expr if isinstance(number, torch.SymInt) else None
                if theirs is not None and theirs not in seen:
                    seen.add(theirs)
                    yield theirs.xreplace({s: own[str(s)] for s in theirs.free_symbols})


class _Numbers:
    """Finds the expression of a number by its values at two sizes.

    Args:
        opened: the open sizes, at the first sizes.
        sizes: the second sizes.
        expressions: what a number may be.
    """

    def __init__(
        self, opened: OpenSizes, sizes: Sequence[int], expressions: Iterable[sympy.Expr]
    ) -> None:
        self._opened = opened
        self._values = {
            expression: (opened.at(expression, opened.given), opened.at(expression, sizes))
            for expression in (*opened.symbols, *expressions)
        }
        self._known: dict[tuple[int, int], int] = {}

    def arguments(self, node: fx.Node, twin: fx.Node) -> tuple[Any, Any]:
        """Arguments of a node; the twin is the same node at the second sizes."""
        args = pytree.tree_map(self.number, node.args, twin.args)
        return args, pytree.tree_map(self.number, node.kwargs, twin.kwargs)

    def layouts(self, node: fx.Node, twin: fx.Node) -> list[ir.Layout]:
        """Layouts of what a node yields."""
        pairs = zip(ir.layouts(node), ir.layouts(twin), strict=True)
        return [
            ir.Layout(self.row(one.sizes, other.sizes), self.row(one.strides, other.strides))
            for one, other in pairs
        ]

    def row(self, numbers: Sequence[int], others: Sequence[int]) -> tuple[int, ...]:
        """Several numbers."""
        return tuple(map(self.number, numbers, others))

    def number(self, number: Any, other: Any) -> Any:
        """A number that remembers its expression, or anything else as it is.

        Args:
            number: its value at the first sizes.
            other: its value at the second sizes.
        """
        if isinstance(number, bool) or not isinstance(number, int):
            is_same = isinstance(number, fx.Node) or repr(number) == repr(other)
            if not is_same:
                raise NotOpenError(f"{number} and {other} at two sizes: the rule is not known")
            return number
        pair = number, int(other)
        if pair not in self._known:
            self._known[pair] = self._found(*pair)
        return self._known[pair]

    def _found(self, number: int, other: int) -> int:
        equal = [each for each, values in self._values.items() if values == (number, other)]
        if number == other:
            self._require(sympy.Integer(number), equal)
            return number
        equal = equal or list(self._multiples(number, other))
        if not equal:
            raise NotOpenError(f"{number} and {other} at two sizes: the rule is not known")
        self._require(equal[0], equal[1:])
        return self._opened.size(equal[0])

    def _multiples(self, number: int, other: int) -> Iterator[sympy.Expr]:
        for expression, (value, value_2) in self._values.items():
            if value and number % value == 0 and value_2 * (number // value) == other:
                yield expression * (number // value)

    def _require(self, expression: sympy.Expr, others: Iterable[sympy.Expr]) -> None:
        """Other sizes must not tell these expressions apart: it is unknown which one is right."""
        for each in others:
            self._opened.found[Condition(operator.eq, expression, each, True)] = None
