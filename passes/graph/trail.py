"""Trails: the contractions that a dimension of a tensor comes from.

The walk goes back through ops that only change values or the layout, one dimension at a time::

    %scores = matmul(%q, %k)         # dimension 1 of it
    %scaled = mul(%scores, 0.125)
    %p = softmax(%scaled, -1)
    %o = matmul(%p, %v)              # sums over dimension 1 of %p
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from . import ir
from .contractions import contraction
from .ops import CASTS, COPIES, RESHAPES, SOFTMAX, UNIT_DIMS

_COPIES = CASTS | COPIES | {"type_as", "detach", "lift_fresh_copy"}
_SCALES = ("mul", "div", "add", "sub", "rsub", "neg", "masked_fill", "where", "clamp", "nan_to_num")
_ACTIVATIONS = ("exp", "relu", "elu", "sigmoid", "tanh", "silu", "gelu", "softplus", "dropout")
_RARE = ("exp2", "square", "pow", "abs", "sqrt", "relu6", "leaky_relu", "hardtanh", "hardswish")
_POINTWISE = {*SOFTMAX, *_COPIES, *_SCALES, *_ACTIVATIONS, *_RARE, "native_dropout", "clamp_min"}
_VIEWS = RESHAPES | UNIT_DIMS | {"expand"}
_MAX_STEPS = 24


@dataclass(frozen=True)
class Trail:
    """The way back from one dimension of a tensor.

    Attributes:
        node: where the trail has come to.
        dim: the dimension of its tensor.
        path: the nodes after it, up to where the trail began.
        normalised: whether one of these normalises along the dimension.
    """

    node: fx.Node
    dim: int
    path: tuple[fx.Node, ...] = ()
    normalised: bool = False


def contractions_before(node: fx.Node, dim: int) -> Iterator[Trail]:
    """The trails from one dimension of a tensor to the contractions that it comes from."""
    pending, seen = [Trail(node, dim)], {(node, dim)}
    while pending:
        step = pending.pop()
        if contraction(step.node) is not None:
            yield step
            continue
        if len(step.path) >= _MAX_STEPS:
            continue
        normalised = step.normalised or _normalises(step)
        for source in _sources(step.node, step.dim):
            if source not in seen:
                seen.add(source)
                pending.append(Trail(*source, (step.node, *step.path), normalised))


def _normalises(step: Trail) -> bool:
    """Whether an op normalises along the dimension: a softmax, or the ``exp`` of one by hand."""
    if ir.is_call(step.node, *SOFTMAX):
        shape = ir.shape(step.node) or ()
        return int(ir.argument(step.node, 1, "dim")) % len(shape) == step.dim
    return ir.is_call(step.node, "exp", "exp2")


def _sources(node: fx.Node, dim: int) -> list[tuple[fx.Node, int]]:
    """Where a dimension of an op's output comes from, for ops that only change values or layout."""
    shape = ir.shape(node)
    if ir.is_getitem(node) and node.args[1] == 0:
        inner = node.args[0]
        assert isinstance(inner, fx.Node)
        return _pointwise(inner, ir.shape(node) or (), dim) if _is_pointwise(inner) else []
    if node.op != "call_function" or shape is None:
        return []
    source = next(iter(node.all_input_nodes), None)
    before = None if source is None else ir.shape(source)
    if source is None or before is None:
        return []
    if ir.is_call(node, "permute"):
        return [(source, int(ir.argument(node, 1, "dims")[dim]) % len(shape))]
    if ir.is_call(node, "transpose", "t", "mT"):
        pair = [int(d) % len(shape) for d in (node.args[1:3] or (-2, -1))]  # type: ignore[arg-type]
        return [(source, pair[1 - pair.index(dim)] if dim in pair else dim)]
    if ir.is_call(node, *_VIEWS):
        return [(source, found)] if (found := _same_place(shape, before, dim)) is not None else []
    return _pointwise(node, shape, dim) if _is_pointwise(node) else []


def _is_pointwise(node: fx.Node) -> bool:
    return ir.is_call(node, *_POINTWISE)


def _pointwise(node: fx.Node, shape: tuple[int, ...], dim: int) -> list[tuple[fx.Node, int]]:
    """Operands that bring the dimension in full, not broadcast."""
    found: list[tuple[fx.Node, int]] = []
    for operand in node.all_input_nodes:
        before = ir.shape(operand)
        at = dim - len(shape) + len(before or ())
        if before is not None and at >= 0 and before[at] == shape[dim]:
            found.append((operand, at))
    return found


def _same_place(shape: tuple[int, ...], before: tuple[int, ...], dim: int) -> int | None:
    """The dimension of the same size and stride in another view of the same elements."""
    inner = math.prod(shape[dim + 1 :])
    for at, num in enumerate(before):
        if num == shape[dim] and math.prod(before[at + 1 :]) == inner:
            return at
    return None
