"""What attention ops do to an axis that is sharded over ranks.

Heads and rows of the batch are independent of one another, and so are queries. For torch's
``scaled_dot_product_attention`` this is known. For flex attention its graphs show it. Any other op
is tried (``apart``).
"""

from __future__ import annotations

from typing import Any

from torch import fx

from pab_compile.passes.axes.attention_call import AttentionCall
from pab_compile.passes.graph import ir

from .apart import places_of_parts
from .shard import Shard
from .verdict import Answer, Shards, Verdict, meet, shape_of

_MORE_HEADS = "its queries have more heads than its keys"
_INDICES = ("batch", "head")  # the dimensions that graphs of flex attention may read
_SCORE, _MASK = 3, 4  # arguments of flex attention


def attention(node: fx.Node, shards: Shards, call: AttentionCall) -> Answer:
    """Decide what an attention does to the axis.

    Args:
        node: the op.
        shards: how its sharded operands are sharded.
        call: its operands; without axes, which of them are tokens is known for torch's ops only.
    """
    name = ir.op_name(node)
    if name == "scaled_dot_product_attention":
        return _of_torch(node, shards, call)
    operands = (call.query, call.key, call.value)
    lead = next((n for n in operands if n in shards), None)
    if lead is None:
        return "it is sharded elsewhere than in its queries, keys and values"
    dim = shards[lead].dim
    if name == "flex_attention":
        return _flex(node, shards, shards[lead], operands)
    if dim == len(shape_of(lead)) - 1:
        return "it sums over the axis"
    parts = _parts_along(shards, operands, lead)
    if isinstance(parts, str):
        return parts
    found = places_of_parts(node, operands, dim)
    if isinstance(found, str):
        return found
    outputs: list[Shard | None] = []
    read = _outputs_read(node)
    for number, place in enumerate(found):
        if isinstance(place, str) and number in read:
            return place
        is_part = isinstance(place, int)
        outputs.append(parts[call.query].at(place) if is_part else None)  # type: ignore[arg-type]
    val = ir.value(node)
    for shard, tensor in zip(
        outputs, val if isinstance(val, (list, tuple)) else [val], strict=True
    ):
        if shard is not None and not shard.fits(tensor.shape):
            return "its results have other sizes than its queries"
    return Verdict(tuple(outputs), {n: part for n, part in parts.items() if n not in shards})


def _outputs_read(node: fx.Node) -> set[int]:
    """Numbers of the outputs that other ops read."""
    picks = [user for user in node.users if ir.is_getitem(user)]
    return {int(p.args[1]) for p in picks if p.users} if picks else {0}  # type: ignore[arg-type]


def _parts_along(
    shards: Shards, operands: tuple[fx.Node, ...], lead: fx.Node
) -> dict[fx.Node, Shard] | str:
    """How queries, keys and values are sharded alike, or why they are not.

    Several heads of queries may belong to one head of keys.
    """
    mine = shards[lead]
    num = min(int(shape_of(n)[mine.dim]) for n in operands)
    found = {}
    for node in operands:
        together, rest = divmod(int(shape_of(node)[mine.dim]), num)
        if rest or (together > 1 and (num != mine.size or mine.outer != 1)):
            return _MORE_HEADS
        found[node] = mine if num != mine.size else Shard(mine.dim, num, 1, together)
        if not found[node].fits(shape_of(node)) or not found[node].is_whole:
            return "its operands do not have the whole axis"
        if node in shards and shards[node] != found[node]:
            return f"its operands are sharded differently ({node.name})"
    return found


def _flex(node: fx.Node, shards: Shards, shard: Shard, operands: tuple[fx.Node, ...]) -> Answer:
    """Flex attention: rows and heads are apart if its graphs do not read their numbers."""
    if shard.dim >= len(_INDICES):
        return "it mixes the axis, along which its tokens run"
    if any(type(n) is not int for operand in operands for n in shape_of(operand)):
        return "its sizes are open, and it takes other graphs"
    if len({shape_of(n)[shard.dim] for n in operands}) > 1:
        return _MORE_HEADS
    mask = node.args[_MASK]
    assert isinstance(mask, (list, tuple))
    for what, graph, first in (("score", node.args[_SCORE], 1), ("mask", mask[-1], 0)):
        reads = _reads_index(node, graph, first + shard.dim)
        if reads is not False:
            number = f"the number of the {_INDICES[shard.dim]}"
            return f"its {what} function {'reads' if reads else 'may read'} {number}"
    needs = meet(operands, shards, shard, len(shape_of(operands[0])))
    if isinstance(needs, str):
        return needs
    blocks = [n for n in mask[:-1] if isinstance(n, fx.Node) and ir.tensor(n) is not None]
    others = [n for n in node.all_input_nodes if n in shards and n not in (*operands, *blocks)]
    if others:
        return f"what its functions read is sharded ({others[0].name})"
    for block in blocks:
        own = shards.get(block)
        has_axis = shape_of(block)[shard.dim] != 1
        if (own is not None and own != shard) or (has_axis and not shard.fits(shape_of(block))):
            return f"its mask is sharded differently ({block.name})"
        if own is None and has_axis:
            needs[block] = shard
    outputs = tuple(shard if shard.fits(t.shape) else None for t in ir.tensors(node))
    return Verdict(outputs, needs)


def _reads_index(node: fx.Node, graph: Any, place: int) -> bool | None:
    """Whether a graph that flex attention takes reads one of its numbers; None if unknown."""
    if not isinstance(graph, fx.Node):
        return None
    module: Any = node.graph.owning_module
    for name in str(graph.target).split("."):
        module = getattr(module, name, None)
    if not isinstance(module, fx.GraphModule):
        return None
    inputs = ir.placeholders(module.graph)
    return bool(inputs[place].users) if place < len(inputs) else None


def _of_torch(node: fx.Node, shards: Shards, call: AttentionCall) -> Answer:
    """Attention mixes its keys. Queries, heads and batch are independent of one another."""
    keys = [n for n in (call.key, call.value) if n in shards]
    if any(shards[n].dim >= call.tokens for n in keys):
        return "it mixes the axis, along which its keys run"
    lead = next(n for n in (call.query, *keys, call.mask) if n in shards)
    assert lead is not None
    if lead is call.mask:
        return "its mask is sharded, but not its queries or keys"
    shard = shards[lead]
    if shard.dim > call.tokens:
        return "it sums over the axis"
    rank = len(shape_of(call.query))
    if shard.dim == call.tokens:
        if ir.argument(node, 5, "is_causal", False):
            return "it is causal along the axis"
        along = [call.query]
    else:
        along = [call.query, call.key, call.value]
        if len({shape_of(n)[shard.dim] for n in along}) > 1:
            if not node.kwargs.get("enable_gqa") or shard.dim != call.tokens - 1:
                return _MORE_HEADS
            return _in_groups(shards, call, lead)
    needs = meet(along, shards, shard, rank)
    if call.mask is not None and not isinstance(needs, str):
        masked = meet([call.mask], shards, shard, rank)
        needs = masked if isinstance(masked, str) else {**needs, **masked}
    return needs if isinstance(needs, str) else Verdict((shard,), needs)


def _in_groups(shards: Shards, call: AttentionCall, lead: fx.Node) -> Answer:
    """Attention of torch whose keys have fewer heads than its queries."""
    parts = _parts_along(shards, (call.query, call.key, call.value), lead)
    if isinstance(parts, str):
        return parts
    needs = {n: part for n, part in parts.items() if n not in shards}
    if call.mask is not None:
        masked = meet([call.mask], shards, parts[call.query], len(shape_of(call.query)))
        if isinstance(masked, str):
            return masked
        needs |= masked
    return Verdict((parts[call.query],), needs)
