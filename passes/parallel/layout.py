"""Layout: how every tensor of a graph is sharded over the ranks (decide).

The *entry* is the first value of the latents that has the axis in one dimension. From there every
value is sharded along the axis, op by op. An op that mixes the axis takes a detour along another
axis. Where there is none, the shards are gathered, every rank computes the op in full, and its
result is sharded again. At the outputs, and after the last attention, they stay whole (*exit*).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import fx

from pab_compile.passes.axes.table import AxisTable
from pab_compile.passes.errors import ShardingError
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.walk import fed_by, feeding
from pab_compile.passes.sites.binding import Binding
from pab_compile.passes.sites.mixer import Mixer

from .detour import Detour, find_detour, gather_keys, in_rings, sum_up
from .head_groups import in_groups
from .placement import Axis, describe, heads_of, place, products, token_axes
from .rules import judge
from .shard import Shard
from .verdict import Verdict


@dataclass(frozen=True, eq=False)
class Layout:
    """How the tensors of a graph are sharded along one axis.

    Attributes:
        axis: the axis.
        num_ranks: number of ranks.
        shards: sharded value -> its shard, outside detours.
        verdicts: what every op on sharded operands does, outside detours.
        entries: replicated values that are sliced right after they are computed.
        detours: the parts where another axis is sharded instead.
        gathered: ops whose sharded operands are gathered first, so that every rank computes them in
            full; also the output node.
        reasons: op that is computed in full -> why it has no detour.
    """

    axis: Axis
    num_ranks: int
    shards: Mapping[fx.Node, Shard]
    verdicts: Mapping[fx.Node, Verdict]
    entries: frozenset[fx.Node]
    detours: tuple[Detour, ...]
    gathered: frozenset[fx.Node]
    reasons: Mapping[fx.Node, str] = field(default_factory=dict)

    @property
    def in_full(self) -> tuple[fx.Node, ...]:
        """The ops that every rank computes in full, on gathered operands."""
        return tuple(node for node in self.gathered if node.op != "output")

    def readers(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """What reads the gathered value of a node."""
        return tuple(user for user in node.users if user in self.gathered)

    @property
    def gathers(self) -> tuple[fx.Node, ...]:
        """The values that are gathered, each once."""
        nodes = dict.fromkeys(n for node in self.gathered for n in node.all_input_nodes)
        order = [n for n in self.shards if n in nodes]
        return tuple(order)


class _TooEarly(Exception):
    """An op before the first attention needs replicated operands."""

    def __init__(self, operands: Sequence[fx.Node]) -> None:
        self.operands = operands


def lay_out(
    graph: fx.Graph,
    axes: AxisTable,
    mixers: Sequence[Mixer],
    axis: Axis,
    num_ranks: int,
    detours: bool = True,
    ring: int | None = None,
) -> Layout:
    """Decide how every tensor is sharded along an axis.

    Args:
        graph: a captured graph with binding times.
        axes: its axes.
        mixers: its token mixers.
        axis: a token axis of the latents, or a product of some.
        num_ranks: number of ranks.
        detours: whether ops may run along another axis, or in full on every rank. Otherwise no op
            before the last attention may mix the axis, and the ranks exchange nothing before they
            gather.
        ring: ranks of a ring; None for rings only where heads run out.

    Raises:
        ShardingError: the axis has fewer positions than there are ranks, or lies in no dimension.
            Or an op mixes it, and ranks cannot compute it in full.
    """
    if axis.size < num_ranks:
        raise ShardingError(
            f"The axis {axis.name!r} has {axis.size} positions, fewer than the {num_ranks} ranks "
            "that share it."
        )
    planner = _Planner(graph, axes, mixers, axis, num_ranks, detours, ring)
    replicated: set[fx.Node] = set()
    while True:
        try:
            return planner.walk(replicated)
        except _TooEarly as early:
            replicated |= {*early.operands, *feeding(early.operands)}


class _Planner:
    def __init__(
        self,
        graph: fx.Graph,
        axes: AxisTable,
        mixers: Sequence[Mixer],
        axis: Axis,
        num_ranks: int,
        detours: bool,
        ring: int | None,
    ) -> None:
        self._ring = ring
        self._may_detour = detours
        self._graph = graph
        self._axes = axes
        self._axis = axis
        self._num_ranks = num_ranks
        self._mixer_of = {node: mixer for mixer in mixers for node in mixer.nodes}
        self._is_after = fed_by(self._mixer_of)
        self._is_before = feeding(self._mixer_of)
        self._others = self._other_axes()

    def _other_axes(self) -> tuple[Axis, ...]:
        single = token_axes(self._axes)
        free = tuple(a for a in single if a.name not in self._axis.name.split("*"))
        return tuple(a for a in products(self._axes, free) if a.size >= self._num_ranks)

    def walk(self, replicated: set[fx.Node]) -> Layout:
        """Decide on a layout of every node; some nodes stay replicated."""
        self._shards: dict[fx.Node, Shard] = {}
        self._verdicts: dict[fx.Node, Verdict] = {}
        self._detours: list[Detour] = []
        self._entries: set[fx.Node] = set()
        self._gathered: set[fx.Node] = set()
        self._reasons: dict[fx.Node, str] = {}
        self._waiting: dict[fx.Node, tuple[fx.Node, ...]] = {}
        done: set[fx.Node] = set()
        for node in self._graph.nodes:
            sharded = [n for n in node.all_input_nodes if n in self._shards]
            if node in done or node.op == "get_attr":
                continue
            if node.op == "output":
                self._gathered |= {node} if sharded else set()
            elif ir.is_getitem(node) and node.args[0] in self._verdicts:
                source, index = node.args
                self._keep(node, self._verdicts[source].outputs[index])  # type: ignore[index]
            elif not sharded:
                self._maybe_enter(node, replicated)
            else:
                done |= self._visit(node, sharded, replicated)
        if not self._entries:
            raise ShardingError(
                f"The axis {self._axis.name!r} lies in no single dimension of what the model makes "
                "of its latents before the first attention."
            )
        return Layout(
            self._axis,
            self._num_ranks,
            self._shards,
            self._verdicts,
            frozenset(self._entries),
            tuple(self._detours),
            frozenset(self._gathered),
            self._reasons,
        )

    def _keep(self, node: fx.Node, shard: Shard | None) -> None:
        if shard is not None:
            self._shards[node] = shard

    def _maybe_enter(self, node: fx.Node, replicated: set[fx.Node]) -> None:
        """Slice a replicated value of the latents as soon as it has the axis."""
        if node in replicated or ir.binding(node) != Binding.LATENT or ir.tensor(node) is None:
            return
        shard = place(self._axes, node, self._axis)
        if shard is not None and shard.is_whole:
            self._entries.add(node)
            self._shards[node] = shard

    def _visit(
        self, node: fx.Node, sharded: Sequence[fx.Node], replicated: set[fx.Node]
    ) -> set[fx.Node]:
        """Lay out an op on sharded operands. Returns other nodes that are laid out with it."""
        core, answer = self._waiting.pop(node, ()), "it mixes the axis"
        if not core:
            answer = judge(node, {n: self._shards[n] for n in sharded})
            if isinstance(answer, Verdict):
                self._verdicts[node] = answer
                if ir.tensor(node) is not None:
                    self._keep(node, answer.outputs[0])
                return set()
            if node not in self._is_after and node not in self._mixer_of:
                raise _TooEarly(sharded)
            if self._sums_up(node):
                return set()
            core = self._core(node) if self._may_detour else (node,)
            if core[-1] is not node:  # wait until all its operands are laid out
                self._waiting[core[-1]] = core
                return set(core[:-1])
        found = self._detour(core) if self._may_detour else ""
        if isinstance(found, Detour):
            self._detours.append(found)
            for inner in found.verdicts:
                self._shards.pop(inner, None)
                self._verdicts.pop(inner, None)
            self._shards |= {n: shard for n, shard in found.kept.items() if shard is not None}
            self._shards |= {c.node: c.target for c in found.leaving if c.target is not None}
            return {*core, *found.verdicts}
        is_after_all = node not in self._is_before and node not in self._mixer_of
        if is_after_all or (self._may_detour and not any(map(ir.is_random, core))):
            self._gathered.update(core)
            self._reasons[core[-1]] = found
            if not is_after_all:
                self._maybe_enter(core[-1], replicated)
            return set(core)
        raise ShardingError(
            f"The axis {self._axis.name!r} cannot be sharded over {self._num_ranks} ranks: "
            f"{describe(node)} stands in the way, since {answer}."
        )

    def _sums_up(self, node: fx.Node) -> bool:
        """Let the ranks add up their sums, if that sends less than the operands are."""
        detour = sum_up(self._axis, node, self._shards) if self._may_detour else None
        if detour is None:
            return False
        operands = sum(ir.num_bytes(n) for n in node.all_input_nodes)
        if 2 * (self._num_ranks - 1) * ir.num_bytes(node) > operands:
            return False
        self._detours.append(detour)
        return True

    def _core(self, node: fx.Node) -> tuple[fx.Node, ...]:
        if node not in self._mixer_of:
            return (node,)
        nodes = self._mixer_of[node].nodes
        core = nodes[nodes.index(node) :]
        return tuple(n for n in core if not ir.is_getitem(n))

    def _detour(self, core: tuple[fx.Node, ...]) -> Detour | str:
        """The cheapest detour for some mixing ops, or why there is none."""
        reasons: list[str] = []
        found: list[Detour] = []
        heads = heads_of(self._axes, core[0])
        ring: Detour | str = ""
        if core[0] in self._mixer_of:
            ring = in_rings(self._axis, core, self._shards, self._num_ranks, self._ring)
        if self._ring is not None and isinstance(ring, Detour):
            heads = None
        elif heads is not None and heads.size < self._num_ranks:
            reasons.append(f"it has {heads.size} heads only")
            heads = None
        for other in (*self._others, *([heads] if heads else [])):
            detour = find_detour(self._axes, self._axis, other, core, self._shards)
            if isinstance(detour, str):
                reasons.append(detour)
            else:
                found.append(detour)
        groups = in_groups(self._axes, self._axis, core, self._shards, self._num_ranks)
        if isinstance(groups, Detour):
            found.append(groups)
        elif groups:
            reasons.append(groups)
        if found:
            return min(found, key=lambda detour: detour.num_bytes)
        if core[0] in self._mixer_of:
            if isinstance(ring, Detour):
                return ring
            reasons.append(ring)
            staying = gather_keys(self._axes, self._axis, core, self._shards)
            if isinstance(staying, Detour):
                return staying
            reasons.append(staying)
        return "; ".join(dict.fromkeys(reasons)) or "no other axis is long enough"
