"""Choose: the axis to shard, by the bytes that the ranks probably exchange (decide)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import fx

from pab_compile.passes.axes.table import AxisTable
from pab_compile.passes.errors import ShardingError
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.flops import node_flops
from pab_compile.passes.program import Program
from pab_compile.passes.sites.binding import Binding
from pab_compile.passes.sites.site import Site

from .layout import Layout, lay_out
from .placement import PACKED, Axis, describe, packed_axis, products, token_axes
from .shard import Ranks
from .traffic import convention_bytes, gathered_bytes

ALL_TOKENS = "s"
_AS_GOOD = Fraction(11, 10)
_LEAST_SHARED = 0.25
_ONE_RANK = (
    "Run the model on one rank. If its batch has several rows, or guidance makes two calls, try "
    "batch_parallel."
)


@dataclass(frozen=True, eq=False)
class Option:
    """An axis that could be sharded.

    Attributes:
        name: ``t``, ``h``, ``w``, ``s`` for all tokens in one, or ``packed``.
        layout: how the graph is sharded along it, or None.
        step_bytes: expected bytes per rank and step. The plan says how often a site computes.
        shared: the share of the operations of a step of which each rank computes a part.
        balance: the longest part of a rank divided by the mean part. It is 1 for equal parts.
        reason: what the ranks exchange, or why the axis cannot be sharded.
    """

    name: str
    layout: Layout | None
    step_bytes: Fraction
    balance: Fraction
    reason: str
    shared: float = 0.0


@dataclass(frozen=True, eq=False)
class Choice:
    """The axis that is sharded, and all axes that were considered."""

    option: Option
    looked_at: tuple[Option, ...]

    @property
    def layout(self) -> Layout:
        """How the graph is sharded."""
        assert self.option.layout is not None
        return self.option.layout

    def lines(self) -> list[str]:
        """The choice with its reasons, to be printed."""
        found = [f"sharded axis: {self.option.name}, over {self.layout.num_ranks} ranks"]
        return found + [f"  {option.name}: {option.reason}" for option in self.looked_at]


def candidates(axes: AxisTable) -> tuple[tuple[str, Axis], ...]:
    """The axes that can be sharded: one by one, then all tokens as one axis."""
    single = token_axes(axes)
    found = [(axis.name, axis) for axis in single]
    if len(single) > 1:
        found.append((ALL_TOKENS, next(iter(products(axes, single)))))
    return tuple(found)


def choose(
    program: Program,
    num_ranks: int,
    share: Callable[[Site], float],
    wanted: str | None = None,
    ring: int | None = None,
) -> Choice:
    """Choose the axis of least expected bytes. Among similar ones, choose the best balanced.

    Axes along which the ranks would compute more in full than along another one are left out. A
    sequence of prompts and tokens is shared as it is (``packed``) if no axis of the latents can be.

    Args:
        program: a captured graph with its sites.
        num_ranks: number of ranks.
        share: the share of the steps at which the plan computes a site.
        wanted: the axis that the user asks for, if any.
        ring: ranks of a ring; None for rings only where heads run out.

    Raises:
        ShardingError: no axis can be sharded, or not the wanted one; says why.
    """
    found = candidates(program.inferred_axes)
    packed = packed_axis(program.inferred_axes, program.mixers)
    if packed is not None and wanted == PACKED:
        found = ((PACKED, packed),)
    names = [name for name, _ in found]
    if wanted is not None and wanted not in names:
        advice = f"Leave shard out, or choose one of {', '.join(names)}." if names else _ONE_RANK
        raise ShardingError(f"The latents have no axis {wanted!r} that can be sharded. {advice}")
    flops = _step_flops(program.graph_module.graph)
    every = {
        name: functools.partial(
            _look_at, name, axis, program, share=share, flops=flops, ring=ring, num_ranks=num_ranks
        )
        for name, axis in found
    }
    looked_at = tuple(look() for name, look in every.items() if wanted in (None, name))
    possible = [option for option in looked_at if option.layout is not None]
    if not possible and wanted is None and packed is not None:
        looked_at += (
            _look_at(PACKED, packed, program, num_ranks, share=share, flops=flops, ring=ring),
        )
        possible = [option for option in looked_at if option.layout is not None]
    if not possible:
        others = [look() for name, look in every.items() if wanted not in (None, name)]
        alike = [each for each in found if wanted in (None, each[0])]
        raise ShardingError(_refusal(looked_at, others, num_ranks, _fewer(alike, every, num_ranks)))
    rest = {option: 1 - option.shared * (1 - 1 / num_ranks) for option in possible}
    possible = [option for option in possible if rest[option] <= min(rest.values()) * _AS_GOOD]
    least = min(option.step_bytes for option in possible)
    as_good = [option for option in possible if option.step_bytes <= least * _AS_GOOD]
    return Choice(min(as_good, key=lambda option: (option.balance, option.step_bytes)), looked_at)


def _fewer(
    found: Sequence[tuple[str, Axis]], every: Mapping[str, Callable[..., Option]], num_ranks: int
) -> tuple[str, int]:
    """An axis that fewer ranks can share, and how many; ``("", 1)`` if there is none."""
    short = [(axis.size, name) for name, axis in found if 1 < axis.size < num_ranks]
    for size, name in sorted(short, key=lambda each: -each[0]):
        if every[name](num_ranks=size).layout is not None:
            return name, size
    return "", 1


def _refusal(
    looked_at: Sequence[Option], others: Sequence[Option], num_ranks: int, fewer: tuple[str, int]
) -> str:
    """Why no axis can be sharded, and what to do, in three lines."""
    if not looked_at:
        return f"The latents have no token axis that {num_ranks} ranks could share. {_ONE_RANK}"
    names = ", ".join(option.name for option in looked_at)
    reasons = list(dict.fromkeys(option.reason for option in looked_at))
    more = f" ({len(reasons) - 1} more reasons for other axes)" if len(reasons) > 1 else ""
    works = [option.name for option in others if option.layout is not None]
    if works:
        advice = f"Leave shard out, or set it to {' or '.join(works)}."
    elif fewer[0]:
        advice = f"Take fewer ranks: {fewer[1]} can share the axis {fewer[0]!r}."
    else:
        advice = _ONE_RANK
    return (
        f"No axis of the latents ({names}) can be sharded over {num_ranks} ranks.\n"
        f"{reasons[0]}{more}\n{advice}"
    )


def site_of_nodes(sites: Sequence[Site]) -> dict[fx.Node, Site]:
    """The site that every node of a region is a part of. A detour is in that of its last node."""
    return {node: site for site in sites for node in site.region}


def _look_at(
    name: str,
    axis: Axis,
    program: Program,
    num_ranks: int,
    *,
    share: Callable[[Site], float],
    flops: Mapping[fx.Node, int],
    ring: int | None,
) -> Option:
    nothing = Fraction(0)
    try:
        graph = program.graph_module.graph
        found = (program.inferred_axes, program.mixers)
        layout = lay_out(graph, *found, axis, num_ranks, ring=ring)
    except ShardingError as error:
        return Option(name, None, nothing, nothing, str(error))
    shared = _shared(layout, flops)
    if shared < _LEAST_SHARED:
        return Option(name, None, nothing, nothing, _why_in_full(layout, shared))
    total, sites = nothing, site_of_nodes(program.sites)
    for node in layout.gathers:
        readers = [sites.get(reader) for reader in layout.readers(node)]
        often = max((share(site) if site is not None else 1.0) for site in readers)
        sent = gathered_bytes(node, layout.shards[node], Ranks(num_ranks))
        total += Fraction(often).limit_denominator(1000) * sent
    words: dict[str, int] = {}
    for detour in layout.detours:
        site = sites.get(detour.core[-1])
        often = Fraction(share(site) if site is not None else 1.0).limit_denominator(1000)
        total += often * sum(
            convention_bytes(crossing, num_ranks)
            for crossing in (*detour.entering, *detour.leaving)
        )
        kind = "an op that mixes it" if site is None else f"{site.kind} attention"
        stays = detour.kept and detour.ring is None
        where = "gathers its keys" if stays else f"runs along {detour.axis.name}"
        if any(crossing.adds_up for crossing in detour.leaving):
            where = "adds up the sums of all ranks"
        word = f"{kind} {where}, computed at {float(often):.0%} of the steps"
        words[word] = words.get(word, 0) + 1
    for node in layout.in_full:
        word = f"{ir.op_name(node)} computed in full on every rank"
        if ir.is_foreign(node):
            word += f" ({layout.reasons[node]})"
        words[word] = words.get(word, 0) + 1
    counts = Ranks(num_ranks).counts(axis.size)
    parts = f"{max(counts)} of {axis.size} positions per rank"
    detours = "; ".join(f"{num} x {word}" for word, num in words.items()) or "nothing mixes it"
    return Option(
        name,
        layout,
        total,
        Fraction(max(counts) * num_ranks, axis.size),
        f"{float(total) / 1e6:.4g} MB per step and rank, {parts}; {detours}",
        shared,
    )


def _step_flops(graph: fx.Graph) -> dict[fx.Node, int]:
    """The operations of what a step computes anew."""
    found = {node: node_flops(node) for node in ir.calls(graph)}
    once = (Binding.CONSTANT, Binding.PROMPT)
    return {node: num for node, num in found.items() if num and ir.binding(node) not in once}


def _shared(layout: Layout, flops: Mapping[fx.Node, int]) -> float:
    """The share of the operations of which each rank computes a part."""
    parts = [layout.verdicts, *(detour.verdicts for detour in layout.detours)]
    mine = sum(flops.get(node, 0) for part in parts for node in part)
    return mine / max(sum(flops.values()), 1)


def _why_in_full(layout: Layout, shared: float) -> str:
    """Why sharing an axis would hardly share any work."""
    ops = layout.in_full
    first = f"{describe(ops[0])} mixes it" if ops else "the other operations do not have it"
    return (
        f"Along the axis {layout.axis.name!r} the ranks would share {shared:.0%} of the operations "
        f"and compute all others in full, since {first}."
    )
