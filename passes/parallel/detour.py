"""Detours: an op that mixes the sharded axis runs on tensors that are sharded along another.

Every tensor that enters the detour is re-sharded before it. Every tensor that leaves it is
re-sharded back. The tensors that enter are a minimum cut in bytes, among values that only the
mixing op uses::

    %y = mul(%norm, %scale)                     # t sharded
    %y_hw = all_to_all(%y: t -> h*w)            # 1 tensor, rather than q, k and v
    %q = linear(%y_hw, ...); ...; %o = attention(%q, %k, %v)
    %o_t = all_to_all(%o: h*w -> t)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import fx

from pab_compile.passes.axes.attention_call import attention_call
from pab_compile.passes.axes.table import AxisTable
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.contractions import contraction
from pab_compile.passes.graph.minimum_cut import minimum_cut
from pab_compile.passes.graph.walk import in_order, picks, results

from .placement import Axis, place
from .ring import Ring, ring_for
from .rules import judge
from .shard import Shard
from .verdict import Shards, Verdict, first_operand, shape_of, wrap


@dataclass(frozen=True, eq=False)
class Crossing:
    """A tensor that is re-sharded.

    Attributes:
        node: the tensor.
        source: how it is sharded before.
        target: how it is sharded after; None where every rank gets all of it.
        adds_up: whether each rank has a part of a sum, and every rank gets the whole sum. The
            source is then how what is summed is sharded.
        ring: the ring of the attention for which it is exchanged, if it is in rings.
        hop: how often it has come to the next rank of its ring then; 0 if it is not passed on.
    """

    node: fx.Node
    source: Shard
    target: Shard | None
    adds_up: bool = False
    ring: Ring | None = None
    hop: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of the full tensor, without the positions that every rank has."""
        if self.adds_up:
            return ir.num_bytes(self.node)
        replicated = self.source if not self.source.is_whole else self.target or self.source
        return ir.num_bytes(self.node) * replicated.sharded // replicated.full


@dataclass(frozen=True, eq=False)
class Detour:
    """A part of the graph that runs sharded along another axis.

    Attributes:
        axis: the other axis.
        core: the mixing op or ops.
        verdicts: what every op of the detour does, in graph order, core included.
        entering: tensors re-sharded before it.
        leaving: tensors re-sharded after it.
        kept: its outputs that are already sharded along the main axis. Those that every rank has
            in full have None.
        ring: the ring in which its core is computed, if it is.
    """

    axis: Axis
    core: tuple[fx.Node, ...]
    verdicts: Mapping[fx.Node, Verdict]
    entering: tuple[Crossing, ...]
    leaving: tuple[Crossing, ...]
    kept: Mapping[fx.Node, Shard | None] = field(default_factory=dict)
    ring: Ring | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the full tensors that are re-sharded."""
        return sum(crossing.num_bytes for crossing in (*self.entering, *self.leaving))


def find_detour(
    axes: AxisTable, main: Axis, other: Axis, core: Sequence[fx.Node], shards: Shards
) -> Detour | str:
    """Plan a detour for ops that mix the sharded axis.

    Args:
        axes: axes of every tensor.
        main: the sharded axis.
        other: the axis to shard along instead.
        core: the mixing ops in graph order.
        shards: how all values before them are sharded.

    Returns:
        The detour of least bytes, or why this axis has none.
    """
    private = _private(core, shards, axes, other)
    cut, inside = _cheapest_entrance(core, private, shards, axes, other)
    if cut is None:
        return f"what it reads does not have the axis {other.name} in one dimension"
    local: dict[fx.Node, Shard] = {}
    for node in cut:
        shard = place(axes, node, other)
        assert shard is not None
        local[node] = shard
    verdicts: dict[fx.Node, Verdict] = {}
    laid_out = (*inside, *core, *picks(core[-1]))
    for node in laid_out:
        answer = _judge_inside(node, local, verdicts)
        if isinstance(answer, str):
            return f"sharded along {other.name}, {answer}"
        verdicts[node] = answer
        if ir.tensor(node) is not None and answer.outputs[0] is not None:
            local[node] = answer.outputs[0]
    leaving = []
    for node in results(laid_out):
        if ir.tensor(node) is None:
            continue
        back = main_shard(axes, main, node, shards)
        if back is None or node not in local or not local[node].is_whole:
            return f"its result does not have the axis {main.name} in one dimension"
        leaving.append(Crossing(node, local[node], back))
    entering = tuple(Crossing(node, shards[node], local[node]) for node in cut)
    if not all(local[node].is_whole for node in cut):
        return f"the axis {other.name} has replicated positions"
    return Detour(other, tuple(core), verdicts, entering, tuple(leaving))


def in_rings(
    main: Axis, core: Sequence[fx.Node], shards: Shards, num_ranks: int, length: int | None = None
) -> Detour | str:
    """Plan an attention in rings, on the main axis and on as many heads as there are.

    Args:
        main: the sharded axis.
        core: the mixing ops in graph order.
        shards: how all values before them are sharded.
        num_ranks: number of ranks.
        length: ranks of a ring; None for rings as short as the heads allow.

    Returns:
        A detour along the heads, or why there is none.
    """
    if len(core) > 1:
        return "it is not in rings, since it is written out by hand"
    found = ring_for(core[0], shards, num_ranks, length)
    if isinstance(found, str):
        return found
    ring, call = found
    node, shard = core[0], shards[call.query]
    keys = list(dict.fromkeys((call.key, call.value)))
    hops = [
        Crossing(n, shards[n], shards[n], ring=ring, hop=hop)
        for hop in range(1, ring.length)
        for n in keys
    ]
    axis = Axis(ring.name, main.size, main.holds)
    verdicts = {node: Verdict((shard,))}
    if ring.num_heads == 1:
        return Detour(axis, (node,), verdicts, tuple(hops), (), {node: shard}, ring)
    assert call.heads is not None
    heads = Shard(call.heads, shape_of(call.query)[call.heads])
    switched = [
        Crossing(n, shards[n], heads, ring=ring) for n in dict.fromkeys((call.query, *keys))
    ]
    back = Crossing(node, heads, shard, ring=ring)
    return Detour(axis, (node,), verdicts, (*switched, *hops), (back,), ring=ring)


def gather_keys(
    axes: AxisTable, main: Axis, core: Sequence[fx.Node], shards: Shards
) -> Detour | str:
    """Plan an attention on the main axis: each rank has its queries, and gets all keys and values.

    Args:
        axes: axes of every tensor.
        main: the sharded axis.
        core: the mixing ops in graph order.
        shards: how all values before them are sharded.

    Returns:
        A detour along the main axis itself, or why there is none.
    """
    call = attention_call(core[0], axes.dims)
    if call is None or len(core) > 1:
        return "its keys are not gathered, since it is written out by hand"
    keys = [n for n in dict.fromkeys((call.key, call.value)) if n in shards]
    mine = {n: shards[n] for n in core[0].all_input_nodes if n in shards and n not in keys}
    if call.query not in mine:
        return "its keys are not gathered, since its queries are the same or are not sharded"
    answer = judge(core[0], mine)
    if isinstance(answer, str) or answer.outputs[0] is None:
        return f"with all keys on every rank, {answer}"
    entering = tuple(Crossing(node, shards[node], None) for node in keys)
    kept = {core[0]: answer.outputs[0]}
    return Detour(main, tuple(core), {core[0]: answer}, entering, (), kept)


def sum_up(main: Axis, node: fx.Node, shards: Shards) -> Detour | None:
    """Plan a sum over the main axis: each rank sums up its part, and all ranks add up the sums.

    Args:
        main: the sharded axis.
        node: an op that mixes it.
        shards: how all values before it are sharded.

    Returns:
        A detour along the main axis itself; None if the op is no sum over it.
    """
    parts = _summed(node, shards)
    mine = [shards[n] for n in node.all_input_nodes if n in shards]
    value = ir.tensor(node)
    if parts is None or value is None or not value.is_floating_point():
        return None
    if any(parts.get(n) != shards[n] for n in node.all_input_nodes if n in shards):
        return None  # it is sharded elsewhere too
    if not all(shard.is_whole for shard in parts.values()):
        return None  # what all ranks have would count several times
    verdict = Verdict((None,), {n: shard for n, shard in parts.items() if n not in shards})
    leaving = (Crossing(node, mine[0], None, adds_up=True),)
    return Detour(main, (node,), {node: verdict}, (), leaving, {node: None})


def _summed(node: fx.Node, shards: Shards) -> dict[fx.Node, Shard] | None:
    """The parts of its operands that an op sums up over the axis; None if it is no such sum."""
    if ir.is_call(node, "sum"):
        x = first_operand(node)
        asked = ir.argument(node, 1, "dim")
        dims = [asked] if isinstance(asked, int) else asked or ()
        is_it = x in shards and shards[x].dim in [wrap(dim, len(shape_of(x))) for dim in dims]
        return {x: shards[x]} if is_it else None
    spec = contraction(node)
    if spec is None or {*node.all_input_nodes} != {*spec.operands}:
        return None
    for places in spec.summed:
        found = [(spec.operands[i], dim) for i, dim in places]
        lead = next((shards[n] for n, dim in found if n in shards and shards[n].dim == dim), None)
        if lead is not None and len({n for n, _ in found}) == len(found):
            return {n: lead.at(dim) for n, dim in found}
    return None


def _judge_inside(
    node: fx.Node, local: Shards, verdicts: Mapping[fx.Node, Verdict]
) -> Verdict | str:
    """What an op does to the other axis. A pick of an output does nothing."""
    if ir.is_getitem(node):
        source, index = node.args
        return Verdict((verdicts[source].outputs[index],))  # type: ignore[index]
    mine = {n: local[n] for n in node.all_input_nodes if n in local}
    return judge(node, mine) if mine else "none of its operands has that axis"


def _private(
    core: Sequence[fx.Node], shards: Shards, axes: AxisTable, other: Axis
) -> list[fx.Node]:
    """Sharded ancestors that only the core reads and that can run along the other axis."""
    members, found = set(core), list[fx.Node]()
    pending = [n for node in core for n in node.all_input_nodes]
    while pending:
        node = pending.pop()
        if node in members or node.op != "call_function" or not _is_sharded(node, shards):
            continue
        if not all(user in members for user in node.users) or not _can_run(
            node, shards, axes, other
        ):
            continue
        members.add(node)
        found.append(node)
        pending.extend(node.all_input_nodes)
    return in_order(found)


def _is_sharded(node: fx.Node, shards: Shards) -> bool:
    return node in shards or (
        ir.tensor(node) is None and any(user in shards for user in node.users)
    )


def _can_run(node: fx.Node, shards: Shards, axes: AxisTable, other: Axis) -> bool:
    if ir.is_getitem(node):
        return True  # as far as the op whose output it picks can
    if any(n in shards and place(axes, n, other) is None for n in node.all_input_nodes):
        return False
    mine = {
        n: shard for n in node.all_input_nodes if n in shards and (shard := place(axes, n, other))
    }
    return bool(mine) and isinstance(judge(node, mine), Verdict)


def _cheapest_entrance(
    core: Sequence[fx.Node],
    private: Sequence[fx.Node],
    shards: Shards,
    axes: AxisTable,
    other: Axis,
) -> tuple[list[fx.Node] | None, list[fx.Node]]:
    """The tensors of least bytes to re-shard, and the nodes after them."""
    readers = dict.fromkeys((*private, *core))
    edges = [(n, v) for v in readers for n in v.all_input_nodes if _is_sharded(n, shards)]
    edges = [(n, v) for n, v in edges if n not in core]
    sizes: dict[fx.Node, int | None] = {}
    for node in in_order({source for source, _ in edges}):
        can_enter = ir.tensor(node) is not None and place(axes, node, other) is not None
        sizes[node] = ir.num_bytes(node) if can_enter else None
    starts = [node for node in sizes if node not in readers]
    ends = [source for source, reader in edges if reader in core]
    inner = [(source, reader) for source, reader in edges if reader not in core]
    cut = minimum_cut(sizes, inner, starts, ends)
    if cut is None:
        return None, []
    return list(cut.nodes), [node for node in private if node in cut.after]


def main_shard(axes: AxisTable, main: Axis, node: fx.Node, shards: Shards) -> Shard | None:
    """How the output of an attention is sharded along the main axis: like the queries."""
    call = attention_call(node, axes.dims)
    if call is not None and call.query in shards:
        shard = shards[call.query]
        return shard if shard.fits(shape_of(node)) else None
    return place(axes, node, main)
