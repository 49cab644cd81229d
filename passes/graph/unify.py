"""Unify: what captures of one model at different sizes say of all sizes.

The graphs have the same ops. A number that is the same in all is a constant. Any other follows from
the open sizes. It is found among the expressions that Dynamo computed, and their multiples::

    sizes 7            sizes 9             open size s0
    view(%x, [1, 28])  view(%x, [1, 36])   view(%x, [1, 4 * s0])

This takes a fraction of the time of a trace with symbols. Where several expressions give the same
numbers, they must be equal for other sizes too: that is a condition (``passes.graph.size``). So a
picture and the same one upright, which have equally many tokens, say less than three pictures do.
"""

from __future__ import annotations

import hashlib
import operator
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import sympy
import torch
from torch import fx
from torch.utils import _pytree as pytree

from . import ir
from .open_sizes import NotOpenError, OpenSizes, SizeInputs
from .other_sizes import other_sizes
from .size import Condition
from .walk import positions


def skeleton(captured: fx.GraphModule) -> str:
    """Hash of a captured graph without its numbers, and of the layouts of its weights."""
    index = positions(captured.graph)
    lines: list[str] = []
    for node in captured.graph.nodes:
        names = _without_numbers((node.args, node.kwargs), index)
        known = node.op == "placeholder" and ir.is_constant_input(node)
        named = ir.source(node) if node.op == "placeholder" else node.target
        lines.append(f"{node.op} {named} {names} {ir.layout(node) if known else ''}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _without_numbers(value: Any, index: dict[fx.Node, int]) -> str:
    """Arguments as text, with ``#`` in the place of every number."""
    if isinstance(value, fx.Node):
        return f"%{index[value]}"
    if isinstance(value, int) and not isinstance(value, bool):
        return "#"
    if isinstance(value, (tuple, list)):
        kind = "list" if isinstance(value, list) else "tuple"
        return f"{kind}({', '.join([_without_numbers(each, index) for each in value])})"
    if isinstance(value, dict):
        pairs = [f"{key}: {_without_numbers(each, index)}" for key, each in value.items()]
        return f"dict({', '.join(pairs)})"
    if isinstance(value, slice):
        return f"slice{_without_numbers((value.start, value.stop, value.step), index)}"
    return repr(value)


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


class _At(NamedTuple):
    """A graph with the sizes that it was captured at."""

    graph: fx.GraphModule
    sizes: tuple[int, ...]


class _Learned(NamedTuple):
    """How the numbers of a graph follow: arguments and layouts of its nodes."""

    opened: OpenSizes
    of_nodes: tuple[Sequence[tuple[Any, Any]], Sequence[list[ir.Layout]]]


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
    capture_at: Callable[[tuple[int, ...]], Known | None] = lambda _: None,
) -> None:
    """Let the numbers of a captured graph remember how they follow from open sizes.

    Args:
        captured: a graph; modified in place.
        others: graphs with the same ``skeleton``; not modified. Open sizes that are the same in all
            of them stay as they are.
        dynamo_graph: the graph of Dynamo that was captured, with Dynamo's expressions.
        given: the open sizes that it was captured at.
        capture_at: captures the graph at other sizes. It is asked if the other graphs do not say
            what holds for sizes that nobody asked for.

    Raises:
        NotOpenError: there is no such graph, or a number differs and nothing explains how.
    """
    _check_numbers(dynamo_graph)
    where = SizeInputs.of(dynamo_graph)
    known = _known(given, others, dynamo_graph, where)
    learned = _learned(captured, known, dynamo_graph, where, given)
    further = other_sizes(dynamo_graph, given)
    is_enough = isinstance(learned, _Learned) and (further is None or learned.opened.hold(further))
    more = None if is_enough or further is None else capture_at(further)
    if more is not None and further is not None and skeleton(more.graph) == skeleton(captured):
        known.append(_At(more.graph, further))
        better = _learned(captured, known, dynamo_graph, where, given)
        learned = better if isinstance(better, _Learned) else learned
    if isinstance(learned, NotOpenError):
        raise learned
    for node, (args, kwargs), layouts in zip(captured.graph.nodes, *learned.of_nodes, strict=True):
        node.args, node.kwargs = args, kwargs
        ir.set_layouts(node, layouts)
    captured.recompile()
    ir.set_open_sizes(captured, learned.opened)


def _learned(
    captured: fx.GraphModule,
    known: Sequence[_At],
    dynamo_graph: fx.GraphModule,
    where: SizeInputs,
    given: Sequence[int],
) -> _Learned | NotOpenError:
    """How the numbers of a graph follow, if all of the others agree, or else one of them."""
    if not known:
        return NotOpenError("no other sizes were captured")
    errors: list[NotOpenError] = []
    # The model may have treated the sizes of some of them in a way of their own.
    for some in (known, *([each] for each in known if len(known) > 1)):
        try:
            return _compared(captured, some, dynamo_graph, where, given)
        except NotOpenError as error:
            errors.append(error)
    return errors[0]


def _compared(
    captured: fx.GraphModule,
    known: Sequence[_At],
    dynamo_graph: fx.GraphModule,
    where: SizeInputs,
    given: Sequence[int],
) -> _Learned:
    """How the numbers of a graph follow, if all of the others agree."""
    opened = OpenSizes.begin(where.names, given)
    own = dict(zip(where.names, opened.symbols, strict=True))
    for place, (symbol, size) in enumerate(zip(opened.symbols, given, strict=True)):
        if all(other.sizes[place] == size for other in known):
            # Nothing shows what follows from it.
            opened.found[Condition(operator.eq, symbol, size, True)] = None
    sizes = [other.sizes for other in known]
    numbers = _Numbers(opened, sizes, _expressions(dynamo_graph, own))
    for other in known:
        _check_constants(captured, other.graph)
    rows = list(
        zip(captured.graph.nodes, *(other.graph.graph.nodes for other in known), strict=True)
    )
    found = [numbers.arguments(*row) for row in rows]
    return _Learned(opened, (found, [numbers.layouts(*row) for row in rows]))


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


def _known(
    given: Sequence[int],
    others: Iterable[Known],
    dynamo_graph: fx.GraphModule,
    where: SizeInputs,
) -> list[_At]:
    """The graphs of other sizes, each size once; those that differ in most open sizes first."""
    found: dict[tuple[int, ...], _At] = {}
    for each in others:
        sizes = _sizes_of(each, dynamo_graph, where)
        if sizes is not None and sizes != tuple(given):
            found.setdefault(sizes, _At(each.graph, sizes))
    return sorted(found.values(), key=lambda at: -sum(map(operator.ne, at.sizes, given)))


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
        shape = ir.shape(node) or ()
        if len(shape) != example.ndim:  # a graph of other code
            return None
        for number, size in zip(example.shape, shape, strict=True):
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
    """Finds the expression of a number by its values at several sizes.

    Args:
        opened: the open sizes, at the first sizes.
        sizes: the other sizes.
        expressions: what a number may be.
    """

    def __init__(
        self,
        opened: OpenSizes,
        sizes: Sequence[Sequence[int]],
        expressions: Iterable[sympy.Expr],
    ) -> None:
        self._opened = opened
        self._values = {
            expression: tuple(opened.at(expression, each) for each in (opened.given, *sizes))
            for expression in (*opened.symbols, *expressions)
        }
        self._known: dict[tuple[int, ...], int] = {}

    def arguments(self, node: fx.Node, *twins: fx.Node) -> tuple[Any, Any]:
        """Arguments of a node; the twins are the same node at the other sizes."""
        args = pytree.tree_map(self.number, node.args, *(twin.args for twin in twins))
        return args, pytree.tree_map(self.number, node.kwargs, *(twin.kwargs for twin in twins))

    def layouts(self, *nodes: fx.Node) -> list[ir.Layout]:
        """Layouts of what a node yields, from those at all sizes."""
        return [
            ir.Layout(
                self.row(*(layout.sizes for layout in layouts)),
                self.row(*(layout.strides for layout in layouts)),
            )
            for layouts in zip(*map(ir.layouts, nodes), strict=True)
        ]

    def row(self, *numbers: Sequence[int]) -> tuple[int, ...]:
        """Several numbers, from those at all sizes."""
        return tuple(map(self.number, *numbers))

    def number(self, number: Any, *others: Any) -> Any:
        """A number that remembers its expression, or anything else as it is.

        Args:
            number: its value at the first sizes.
            *others: its values at the other sizes.
        """
        if isinstance(number, bool) or not isinstance(number, int):
            is_node, known = isinstance(number, fx.Node), repr(number)
            if not is_node and any(repr(other) != known for other in others):
                raise _unknown(number, *others)
            return number
        values = (number, *map(int, others))
        if values not in self._known:
            self._known[values] = self._found(values)
        return self._known[values]

    def _found(self, values: tuple[int, ...]) -> int:
        number = values[0]
        equal = [each for each, known in self._values.items() if known == values]
        if all(other == number for other in values):
            self._require(sympy.Integer(number), equal)
            return number
        equal = equal or list(self._multiples(values))
        if not equal:
            raise _unknown(*values)
        self._require(equal[0], equal[1:])
        return self._opened.size(equal[0])

    def _multiples(self, values: tuple[int, ...]) -> Iterator[sympy.Expr]:
        for expression, known in self._values.items():
            factor, rest = divmod(values[0], known[0]) if known[0] else (0, 1)
            if not rest and all(v * factor == n for v, n in zip(known, values, strict=True)):
                yield expression * factor

    def _require(self, expression: sympy.Expr, others: Iterable[sympy.Expr]) -> None:
        """Other sizes must not tell these expressions apart: it is unknown which one is right."""
        for each in others:
            self._opened.found[Condition(operator.eq, expression, each, True)] = None


def _unknown(*values: Any) -> NotOpenError:
    """The error for a number without a rule."""
    words = ", ".join(map(str, values))
    return NotOpenError(f"{words} at different sizes: the rule is not known")
