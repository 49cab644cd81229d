"""What every op does to an axis that is sharded over ranks.

``judge`` answers for one node. An op without a rule counts as mixing. So a sharded axis in an
unknown op is an error, never a silent wrong result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import fx

from pab_compile.passes.axes.attention_call import attention_call
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.contractions import contraction
from pab_compile.passes.graph.kept import is_kept

from . import view_rules
from .attention_rules import attention
from .shard import Shard
from .verdict import (
    Answer,
    Shards,
    Verdict,
    first_operand,
    meet,
    others,
    same,
    shape_of,
    wrap,
)

Rule = Callable[[fx.Node, Shards], Answer]


def judge(node: fx.Node, shards: Shards) -> Answer:
    """Decide whether every rank can compute its part of an op.

    Args:
        node: a call of a captured graph, with the full tensor as its value.
        shards: how its sharded operands are sharded. There is at least one.

    Returns:
        A verdict, or the reason why the op mixes positions of different ranks.
    """
    if ir.is_random(node):
        return "it draws random numbers, which would differ between ranks"
    name = ir.op_name(node)
    if (call := attention_call(node, lambda n: ((),) * len(shape_of(n)))) is not None:
        return attention(node, shards, call)
    if contraction(node) is not None:
        return _product(node, shards)
    if is_kept(node):
        return _module(node, shards)
    if (rule := RULES.get(name)) is not None:
        found = next((n for n in others(node, shards)), None)
        if found is not None and rule not in _OF_SEVERAL:
            return f"it reads {found.name}, which is sharded, besides its first operand"
        return rule(node, shards)
    if name in _POINTWISE or torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return _elementwise(node, shards)
    return "no rule says what it does to an axis"


def _module(node: fx.Node, shards: Shards) -> Answer:
    """A module of the user that was tried: it keeps the tokens of its one input apart."""
    given, is_apart = cast("list[fx.Node]", node.args[0]), node.args[6]
    tokens, *further = given
    if not is_apart or further or tokens not in shards:
        return "it is a module of the model, and not known to keep tokens apart"
    if shards[tokens].dim == len(shape_of(node)) - 1:
        return "it is a module of the model, which reads whole tokens"
    return Verdict((shards[tokens],), {})


def _elementwise(node: fx.Node, shards: Shards) -> Answer:
    """Operands broadcast against one another."""
    if ir.tensor(node) is None:
        return "it has several outputs, and no rule"
    operands = [n for n in node.all_input_nodes if ir.tensor(n) is not None]
    rank = len(shape_of(node))
    lead = next(n for n in operands if n in shards)
    shard = shards[lead].at(shards[lead].dim + rank - len(shape_of(lead)))
    if not shard.fits(shape_of(node)):
        return "its result does not have the axis of its operand"
    needs = meet(operands, shards, shard, rank)
    return needs if isinstance(needs, str) else Verdict((shard,), needs)


def _product(node: fx.Node, shards: Shards) -> Answer:
    """Linear layers, matrix products, einsum: an axis of the result stays sharded."""
    spec = contraction(node)
    assert spec is not None
    rank = len(shape_of(node))
    added = [n for n in node.all_input_nodes if n not in spec.operands and ir.tensor(n) is not None]
    for places in spec.summed:
        if any(_is_at(shards, spec.operands[i], dim) for i, dim in places):
            return "it sums over the axis"
    found: list[tuple[int, Shard]] = []
    for out, places in enumerate(spec.kept):
        for i, dim in places:
            if _is_at(shards, spec.operands[i], dim):
                found.append((out, shards[spec.operands[i]].at(out)))
    if not found:
        return "its addend is sharded, but not its factors"
    out, shard = found[0]
    if any(other != (out, shard) for other in found):
        return "it pairs positions of the axis with one another"
    needs: dict[fx.Node, Shard] = {}
    for i, dim in spec.kept[out]:
        operand = spec.operands[i]
        if operand not in shards and shape_of(operand)[dim] != 1:
            needs[operand] = shard.at(dim)
        elif operand in shards and shards[operand] != shard.at(dim):
            return "its operands are sharded differently"
    met = meet(added, shards, shard, rank)
    return met if isinstance(met, str) else Verdict((shard,), {**needs, **met})


def _is_at(shards: Shards, operand: fx.Node, dim: int) -> bool:
    return operand in shards and shards[operand].dim == dim


def _norm(node: fx.Node, shards: Shards) -> Answer:
    """Norms over the last dimensions."""
    x = first_operand(node)
    num = len(ir.argument(node, 1, "normalized_shape"))
    if shards[x].dim >= len(shape_of(x)) - num:
        return "it normalises over the axis"
    return same(shards[x])


def _group_norm(node: fx.Node, shards: Shards) -> Answer:
    """Norms over groups of channels and all positions of a row."""
    x = first_operand(node)
    return same(shards[x]) if shards[x].dim == 0 else "it normalises over the axis"


def _reduce(node: fx.Node, shards: Shards) -> Answer:
    """Sums, means, extrema over some dimensions."""
    x = first_operand(node)
    shard, rank = shards[x], len(shape_of(x))
    at = 2 if ir.is_call(node, "norm", "linalg_vector_norm") else 1
    asked = ir.argument(node, at, "dim")
    val = ir.value(node)
    num = len(val) if isinstance(val, (list, tuple)) else 1
    if not isinstance(asked, (int, list, tuple)) or asked == []:
        return "it reduces over the axis"
    gone = {wrap(d, rank) for d in (asked if isinstance(asked, (list, tuple)) else [asked])}
    if shard.dim in gone:
        return "it reduces over the axis"
    shape = (val[0] if isinstance(val, (list, tuple)) else val).shape
    moved = 0 if len(shape) == rank else sum(d < shard.dim for d in gone)
    return Verdict((shard.at(shard.dim - moved),) * num)


def _convolution(node: fx.Node, shards: Shards) -> Answer:
    """Convolutions: their windows must lie side by side along the axis."""
    x = first_operand(node)
    shard, shape = shards[x], shape_of(x)
    weight = shape_of(ir.argument(node, 1, "weight"))
    grid = len(weight) - 2
    if shard.dim < len(shape) - grid - 1:
        return same(shard)
    at = shard.dim - (len(shape) - grid)
    if at < 0:
        return "it sums over the axis"
    stride, padding, dilation = (
        _per_dim(ir.argument(node, place, name, default), grid)[at]
        for place, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    window = weight[2 + at]
    plain = isinstance(padding, int) and padding == 0 and dilation == 1 and shard.is_whole
    if not plain or window != stride or shard.inner % int(window):
        return "its windows reach across the axis"
    return same(Shard(shard.dim, shard.size, shard.outer, shard.inner // int(window)))


def _per_dim(val: object, num: int) -> list[object]:
    found = list(val) if isinstance(val, (list, tuple)) else [val]
    return found * num if len(found) == 1 else found


def _new(node: fx.Node, shards: Shards) -> Answer:
    """Factories that take only the type from their operand."""
    del node, shards
    return Verdict((None,))


def _table(rules: dict[Rule, str]) -> dict[str, Rule]:
    return {name: rule for rule, names in rules.items() for name in names.split()}


RULES = _table(
    {
        view_rules.view: "view reshape _unsafe_view flatten unflatten view_copy _reshape_alias",
        view_rules.unsqueeze: "unsqueeze",
        view_rules.squeeze: "squeeze",
        view_rules.permute: "permute",
        view_rules.transpose: "transpose t mT swapaxes swapdims numpy_T",
        view_rules.movedim: "movedim moveaxis",
        view_rules.complex_pairs: "view_as_complex view_as_real",
        view_rules.expand: "expand broadcast_to",
        view_rules.repeat: "repeat tile",
        view_rules.repeat_interleave: "repeat_interleave",
        view_rules.cat: "cat concat concatenate",
        view_rules.stack: "stack",
        view_rules.divide: (
            "split split_with_sizes chunk tensor_split unsafe_split unsafe_split_with_sizes "
            "unsafe_chunk"
        ),
        view_rules.unbind: "unbind",
        view_rules.select: "select",
        view_rules.slice_: "slice narrow",
        view_rules.overwrite: "slice_scatter select_scatter",
        view_rules.pad: "pad constant_pad_nd",
        view_rules.index: "index",
        view_rules.index_select: "index_select",
        view_rules.embedding: "embedding",
        view_rules.along_other_dims: "flip roll cumsum sort softmax _softmax _safe_softmax",
        _norm: "layer_norm rms_norm _fused_rms_norm",
        _group_norm: "group_norm native_group_norm instance_norm",
        _reduce: (
            "mean sum nansum prod amax amin max min argmax argmin std var var_mean std_mean any "
            "all logsumexp norm linalg_vector_norm"
        ),
        _convolution: "conv1d conv2d conv3d",
        _new: "new_zeros new_ones new_full new_empty",
    }
)
_OF_SEVERAL = (
    view_rules.cat,
    view_rules.stack,
    view_rules.overwrite,
    view_rules.index,
    view_rules.index_select,
    view_rules.embedding,
)
_POINTWISE = (
    *("clone", "contiguous", "to", "_to_copy", "type_as", "copy", "alias", "detach", "dropout"),
    *("lift_fresh_copy", "zeros_like", "ones_like", "full_like", "empty_like"),
)
