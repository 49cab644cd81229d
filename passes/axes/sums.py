"""Axis rules of ops that sum: reductions, pooling, convolutions, products, attention."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.contractions import Contraction, Place

from .algebra import regroup
from .atoms import Atom, Dim, fresh, leaves, like, mark_contracted, mark_summed, size
from .attention_call import AttentionCall
from .trace import Dims, Outputs, Trace, anew, first, output_shape, output_shapes, wrap


def reduce(trace: Trace, node: fx.Node) -> Dims | Outputs:
    """Sums, means, extrema, norms over some dimensions, which get size 1 or are dropped."""
    dims = trace.of(first(node))
    val = ir.value(node)
    shapes = output_shapes(node) if isinstance(val, (list, tuple)) else [output_shape(node)]
    known = [shape for shape in shapes if shape is not None]
    out = _reduced(dims, node, known[0])
    if isinstance(val, (list, tuple)):
        return [out for _ in shapes]
    return out


def _reduced(dims: Dims, node: fx.Node, shape: tuple[int, ...]) -> Dims:
    if len(shape) == len(dims):
        for dim, n in zip(dims, shape, strict=True):
            if n == 1:
                mark_summed(dim)
        return tuple(() if n == 1 else dim for dim, n in zip(dims, shape, strict=True))
    position = 2 if ir.is_call(node, "norm", "linalg_vector_norm") else 1
    asked = ir.argument(node, position, "dim")
    if asked is None:
        return anew(shape)
    gone = {wrap(d, len(dims)) for d in (asked if isinstance(asked, (list, tuple)) else [asked])}
    for i in gone:
        mark_summed(dims[i])
    return tuple(dim for i, dim in enumerate(dims) if i not in gone)


def resample(trace: Trace, node: fx.Node) -> Dims:
    """Pooling and interpolation. A whole factor splits the axis or is added inside it."""
    dims, shape = trace.of(first(node)), output_shape(node)
    out: list[Dim] = []
    for dim, n in zip(dims, shape, strict=True):
        num = size(dim)
        if n > num and n % num == 0:
            out.append((*dim, *fresh(n // num)))
        else:
            out.append(strided(dim, n, num // n if n and num % n == 0 else 0))
    return tuple(out)


def strided(dim: Dim, num: int, window: int) -> Dim:
    """The axis of windows of this size that lie side by side (0: they overlap)."""
    if size(dim) == num:
        return dim
    if num == 1:
        return ()
    if window and num * window == size(dim) and (found := regroup([dim], (num, window))):
        mark_contracted(found[1])
        return found[0]
    return like(num, dim)


def convolution(trace: Trace, node: fx.Node) -> Dims:
    """Convolutions: channels are projected, and the grid becomes a grid of windows.

    If the windows lie side by side (patch embedding), the grid splits into patches and the inside
    of patches. If they overlap, the new grid shows the roles of the old one.
    """
    dims, shape = trace.of(first(node)), output_shape(node)
    weight = ir.argument(node, 1, "weight")
    grid = len(trace.of(weight)) - 2
    at = len(dims) - grid - 1
    channels = dims[at]
    _record_projection(trace, node, (channels,))
    kernel = [size(dim) for dim in trace.of(weight)[2:]]
    steps = _per_dim(ir.argument(node, 3, "stride", 1), grid)
    depthwise = size(trace.of(weight)[1]) == 1 and shape[at] == size(channels) > 1
    out = [channels if depthwise else fresh(shape[at], feature=True)]
    for dim, n, window, step in zip(dims[at + 1 :], shape[at + 1 :], kernel, steps, strict=True):
        if n > size(dim) and n % size(dim) == 0 and step > 1:
            out.append((*dim, *fresh(n // size(dim))))
        elif n == 1 < window == step == size(dim):
            out.append(like(1, dim))
        else:
            out.append(strided(dim, n, window if window == step else 0))
    return (*dims[:at], *out)


def _per_dim(val: object, num: int) -> list[int]:
    found = [int(n) for n in val] if isinstance(val, (list, tuple)) else [int(str(val))]
    return found * num if len(found) == 1 else found


def _record_projection(trace: Trace, node: fx.Node, dims: Dims) -> None:
    trace.projected.append((node, dims))
    for dim in dims:
        mark_contracted(dim)


def product(trace: Trace, node: fx.Node, spec: Contraction) -> Dims:
    """Linear layers, matrix products, einsum: labels that operands share are one axis."""
    shape = output_shape(node)
    fed = [operand for operand in spec.operands if trace.feeds[operand]]
    for places in spec.summed:
        pairs = _pairs(trace, spec, places)
        trace.meet(node, pairs, max((size(dim) for dim, _ in pairs), default=1))
    if len(fed) > 1:
        trace.mixed += [trace.of(operand) for operand in fed]
    if len(fed) == 1 and len(spec.operands) > 1:
        summed = [trace.of(spec.operands[i])[d] for p in spec.summed for i, d in p]
        ours = [d for d in trace.of(fed[0]) if any(d is s for s in summed)]
        _record_projection(trace, node, tuple(ours))
    out: list[Dim] = []
    for places, num in zip(spec.kept, shape, strict=True):
        pairs = _pairs(trace, spec, places)
        if fed and not any(trace.feeds[operand] for _, operand in pairs):
            out.append(fresh(num, feature=True))
        else:
            out.append(trace.meet(node, pairs, num))
    return tuple(out)


def _pairs(trace: Trace, spec: Contraction, places: Sequence[Place]) -> list[tuple[Dim, fx.Node]]:
    return [(trace.of(spec.operands[i])[d], spec.operands[i]) for i, d in places]


def attention(trace: Trace, node: fx.Node, call: AttentionCall) -> Dims | Outputs:
    """Whole attentions: q, k, v share batch and heads, k and v their tokens, q and k channels."""
    operands = (call.query, call.key, call.value)
    query, key, value = (trace.of(operand) for operand in operands)
    trace.mixed += [query, key]
    channel = len(query) - 1
    out: list[Dim] = []
    for dim in range(len(query)):
        if dim == call.tokens:
            trace.meet(node, [(key[dim], call.key), (value[dim], call.value)], size(key[dim]))
            asked = bool(trace.feeds[call.query])
            out.append(query[dim] if asked else _gathered(size(query[dim]), key[dim]))
        elif dim == channel:
            trace.meet(node, [(query[dim], call.query), (key[dim], call.key)], size(query[dim]))
            out.append(value[dim])
        else:
            pairs = [(trace.of(operand)[dim], operand) for operand in operands]
            out.append(trace.meet(node, pairs, size(query[dim])))
    if call.mask is not None:
        _meet_mask(trace, node, call)
    val = ir.value(node)
    if not isinstance(val, (list, tuple)):
        return tuple(out)
    return [tuple(out), *(None if s is None else anew(s) for s in output_shapes(node)[1:])]


def _gathered(num: int, key: Dim) -> Dim:
    """The tokens of learned queries, which no input feeds. They show the axes of the keys."""
    return (Atom(num, shows=leaves(key), learned=True),)


def _meet_mask(trace: Trace, node: fx.Node, call: AttentionCall) -> None:
    """A mask is ``[..., queries, keys]``, broadcast."""
    assert call.mask is not None
    mask, query, key = trace.of(call.mask), trace.of(call.query), trace.of(call.key)
    against = [*query[:-2], query[call.tokens], key[call.tokens]]
    owners = [call.query] * (len(query) - 1) + [call.key]
    for dim, other, owner in zip(reversed(mask), reversed(against), reversed(owners), strict=False):
        if size(dim) == size(other) > 1:
            trace.meet(node, [(other, owner), (dim, call.mask)], size(other))
