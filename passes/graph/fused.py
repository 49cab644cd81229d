"""Fused sums: ops that multiply and add in one.

The passes see the multiplication and the addition. The inner compiler gets the op of the model,
since it rounds once where the two ops round twice. Captured::

    %y = addcmul(%x, %o, %gate)

For the passes::

    %m = mul(%o, %gate)
    %y = add(%x, %m)             # remembers what it is a part of

The two become one op again where they stand in the same graph. They stay apart if a cut separates
them, or if something else reads the product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import fx

from . import ir
from .open_sizes import compute_value

aten = torch.ops.aten

_PART = "part"
_SCALED = "scaled stream"


class Operand(NamedTuple):
    """An operand of the fused op, by its number."""

    number: int


class Part(NamedTuple):
    """A call that the fused op consists of. Arguments are operands, numbers and other parts."""

    target: Any
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Fused:
    """An op and what it consists of.

    Attributes:
        target: the op.
        args: its arguments, with an ``Operand`` for every tensor.
        kwargs: its arguments by keyword, likewise.
        whole: the last of its parts, the addition.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    whole: Part


def is_factor(node: fx.Node) -> bool:
    """Whether the node scales what a sum adds to its first operand, before it was taken apart."""
    return ir.fused(node) == _PART and ir.is_call(node, "mul", "div")


def is_scaled_stream(node: fx.Node) -> bool:
    """Whether the node scales the first operand of a sum that was taken apart, as ``lerp`` does."""
    return ir.fused(node) == _SCALED


def take_apart(graph_module: fx.GraphModule) -> int:
    """Replace every fused sum by its parts; returns how many.

    Args:
        graph_module: a captured graph. Each sum keeps its node, which becomes the addition.
    """
    graph = graph_module.graph
    count = 0
    for node in list(graph.nodes):
        form = _FORMS.get(ir.op_name(node)) if ir.is_plain_call(node) else None
        made = ir.tensor(node)
        if form is None or made is None or not made.is_floating_point():
            continue
        operands = list(node.all_input_nodes)
        number = {operand: Operand(index) for index, operand in enumerate(operands)}
        args = fx.map_arg(node.args, number.__getitem__)
        kwargs = fx.map_arg(node.kwargs, number.__getitem__)
        whole = form(node, lambda n, number=number: number.get(n, n))
        if whole is None or not _has_value(whole, operands, made):
            continue
        fused = Fused(node.target, tuple(args), dict(kwargs), whole)  # type: ignore[arg-type]
        with graph.inserting_before(node):
            inner = [
                _build(part, operands, node, role)
                for part, role in zip(whole.args, (_SCALED, _PART), strict=True)
            ]
        node.target, node.args, node.kwargs = whole.target, tuple(inner), {}
        ir.set_fused(node, fused)
        count += 1
    if count:
        graph_module.recompile()
    return count


def put_together(graph_module: fx.GraphModule) -> int:
    """Replace the parts of fused sums by the sums, where all parts are there; returns how many."""
    graph = graph_module.graph
    count = 0
    for node in list(graph.nodes):
        fused = ir.fused(node)
        found: dict[Operand, fx.Node] = {}
        inner: list[fx.Node] = []
        if not isinstance(fused, Fused) or not _matches(node, fused.whole, found, inner):
            continue
        node.target = fused.target
        node.args, node.kwargs = _filled(fused.args, found), _filled(fused.kwargs, found)
        ir.set_fused(node, None)
        for part in inner:  # a user comes before what it uses
            graph.erase_node(part)
        count += 1
    if count:
        graph_module.recompile()
    return count


def count_apart(graph_module: fx.GraphModule) -> int:
    """How many sums of the model are still in parts, so that they round twice."""
    return sum(isinstance(ir.fused(node), Fused) for node in graph_module.graph.nodes)


def _filled(arguments: Any, found: dict[Operand, fx.Node]) -> Any:
    """Arguments, with nodes in the places of operands."""
    if isinstance(arguments, Operand):
        return found[arguments]
    if isinstance(arguments, dict):
        return {name: _filled(value, found) for name, value in arguments.items()}
    if isinstance(arguments, (list, tuple)):
        return tuple(_filled(value, found) for value in arguments)
    return arguments


def _build(part: Any, operands: list[fx.Node], node: fx.Node, role: str) -> Any:
    """Make the nodes of a part, with the facts of the node that it is a part of."""
    if isinstance(part, Operand):
        return operands[part.number]
    if not isinstance(part, Part):
        return part
    args = tuple(_build(arg, operands, node, _PART) for arg in part.args)
    made = node.graph.call_function(part.target, args)
    ir.copy_facts(made, node)
    ir.set_fused(made, role)
    made._rename(f"{node.name}_part")
    compute_value(made)
    return made


def _has_value(whole: Part, operands: list[fx.Node], made: torch.Tensor) -> bool:
    """Whether the parts give a tensor of the same size and type."""

    def compute(part: Any) -> Any:
        if isinstance(part, Operand):
            return ir.tensor(operands[part.number])
        return part.target(*map(compute, part.args)) if isinstance(part, Part) else part

    result = compute(whole)
    return (result.shape, result.dtype) == (made.shape, made.dtype)


def _matches(node: Any, part: Any, found: dict[Operand, fx.Node], inner: list[fx.Node]) -> bool:
    """Whether a node is a part, given some operands; adds the operands and parts before it."""
    if isinstance(part, Operand):
        return isinstance(node, fx.Node) and found.setdefault(part, node) is node
    if not isinstance(part, Part):
        return not isinstance(node, fx.Node) and node == part
    if not isinstance(node, fx.Node) or node.target != part.target or node.kwargs:
        return False
    if len(node.args) != len(part.args):
        return False
    for arg, expected in zip(node.args, part.args, strict=True):
        if isinstance(expected, Part) and isinstance(arg, fx.Node):
            inner.append(arg)
            if len(arg.users) != 1:
                return False
        if not _matches(arg, expected, found, inner):
            return False
    return True


def _times(value: Any, factor: Any) -> Any:
    """A product, left out where the factor is one."""
    return value if factor == 1 else Part(aten.mul.Tensor, (value, factor))


def _plus(one: Any, other: Any) -> Part:
    return Part(aten.add.Tensor, (one, other))


Number = Callable[[Any], Any]
Form = Callable[[fx.Node, Number], Part | None]


def _pointwise(target: Any) -> Form:
    """``addcmul`` and ``addcdiv``: x + value * op(y, z)."""

    def form(node: fx.Node, number: Number) -> Part:
        x, y, z = map(number, node.args[:3])
        return _plus(x, _times(Part(target, (y, z)), ir.argument(node, 3, "value", 1)))

    return form


def _product(target: Any) -> Form:
    """``addmm`` and ``baddbmm``: beta * x + alpha * op(a, b)."""

    def form(node: fx.Node, number: Number) -> Part | None:
        x, a, b = map(number, node.args[:3])
        beta, alpha = (ir.argument(node, at, name, 1) for at, name in ((3, "beta"), (4, "alpha")))
        if beta == 0:  # x is not read
            return None
        return _plus(_times(x, beta), _times(Part(target, (a, b)), alpha))

    return form


def _lerp(node: fx.Node, number: Number) -> Part:
    """``x + weight * (y - x)``, as the sum of what either of the two gives."""
    x, y, weight = map(number, node.args[:3])
    is_number = not isinstance(weight, Operand)
    rest = 1 - weight if is_number else Part(aten.rsub.Scalar, (weight, 1))
    return _plus(Part(aten.mul.Tensor, (x, rest)), Part(aten.mul.Tensor, (y, weight)))


def _fma(node: fx.Node, number: Number) -> Part:
    """``a * b + c``, as Dynamo writes some sums in place."""
    a, b, c = map(number, node.args[:3])
    return _plus(c, Part(aten.mul.Tensor, (a, b)))


def _scaled(target: Any) -> Form:
    """``add`` and ``sub`` with a factor: x + alpha * y."""

    def form(node: fx.Node, number: Number) -> Part | None:
        alpha = ir.argument(node, 2, "alpha", 1)
        x, y = map(number, node.args[:2])
        if alpha == 1 or not isinstance(y, Operand):
            return None
        return Part(target, (x, _times(y, alpha)))

    return form


def _reversed(node: fx.Node, number: Number) -> Part | None:
    """``rsub``: y - alpha * x."""
    x, y = map(number, node.args[:2])
    if not isinstance(y, Operand):
        return None
    return Part(aten.sub.Tensor, (y, _times(x, ir.argument(node, 2, "alpha", 1))))


_FORMS: dict[str, Form] = {
    "addcmul": _pointwise(aten.mul.Tensor),
    "addcdiv": _pointwise(aten.div.Tensor),
    "addmm": _product(aten.mm.default),
    "baddbmm": _product(aten.bmm.default),
    "lerp": _lerp,
    "fma": _fma,
    "add": _scaled(aten.add.Tensor),
    "sub": _scaled(aten.sub.Tensor),
    "rsub": _reversed,
}
