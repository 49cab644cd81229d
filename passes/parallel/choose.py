"""Choose: the axis to shard, by the bytes that the ranks probably exchange (decide)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from pab_compile.passes.axes.table import AxisTable
from pab_compile.passes.errors import ShardingError
from pab_compile.passes.program import Program
from pab_compile.passes.sites.site import Site

from .detour import Detour
from .layout import Layout, lay_out
from .placement import Axis, products, token_axes
from .shard import Ranks
from .traffic import convention_bytes, gathered_bytes

ALL_TOKENS = "s"
_AS_GOOD = Fraction(11, 10)


@dataclass(frozen=True, eq=False)
class Option:
    """An axis that could be sharded.

    Attributes:
        name: ``t``, ``h``, ``w``, or ``s`` for all tokens in one.
        layout: how the graph is sharded along it, or None.
        step_bytes: expected bytes per rank and step. The plan says how often a site computes.
        balance: the longest part of a rank divided by the mean part. It is 1 for equal parts.
        reason: what the ranks exchange, or why the axis cannot be sharded.
    """

    name: str
    layout: Layout | None
    step_bytes: Fraction
    balance: Fraction
    reason: str


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
) -> Choice:
    """Choose the axis of least expected bytes. Among similar ones, choose the best balanced.

    Args:
        program: a captured graph with its sites.
        num_ranks: number of ranks.
        share: the share of the steps at which the plan computes a site.
        wanted: the axis that the user asks for, if any.

    Raises:
        ShardingError: no axis can be sharded, or not the wanted one; says why.
    """
    found = candidates(program.inferred_axes)
    names = [name for name, _ in found]
    if wanted is not None and wanted not in names:
        raise ShardingError(
            f"The latents have no axis {wanted!r} that can be sharded: they have "
            f"{', '.join(names) or 'none'}."
        )
    looked_at = tuple(
        _look_at(name, axis, program, num_ranks, share)
        for name, axis in found
        if wanted in (None, name)
    )
    possible = [option for option in looked_at if option.layout is not None]
    if not possible:
        raise ShardingError(
            f"No axis of the latents can be sharded over {num_ranks} ranks. "
            + " ".join(f"{option.name}: {option.reason}" for option in looked_at)
        )
    least = min(option.step_bytes for option in possible)
    as_good = [option for option in possible if option.step_bytes <= least * _AS_GOOD]
    return Choice(min(as_good, key=lambda option: (option.balance, option.step_bytes)), looked_at)


def site_of(detour: Detour, sites: Sequence[Site]) -> Site | None:
    """The site that a detour is a part of."""
    return next((site for site in sites if detour.core[-1] in site.region), None)


def _look_at(
    name: str,
    axis: Axis,
    program: Program,
    num_ranks: int,
    share: Callable[[Site], float],
) -> Option:
    nothing = Fraction(0)
    try:
        graph = program.graph_module.graph
        layout = lay_out(graph, program.inferred_axes, program.mixers, axis, num_ranks)
    except ShardingError as error:
        return Option(name, None, nothing, nothing, str(error))
    total = sum(
        (
            Fraction(gathered_bytes(node, layout.shards[node], Ranks(num_ranks)))
            for node in layout.gathers
        ),
        nothing,
    )
    words: dict[str, int] = {}
    for detour in layout.detours:
        site = site_of(detour, program.sites)
        often = Fraction(share(site) if site is not None else 1.0).limit_denominator(1000)
        total += often * sum(
            convention_bytes(crossing, num_ranks)
            for crossing in (*detour.entering, *detour.leaving)
        )
        kind = "an op that mixes it" if site is None else f"{site.kind} attention"
        where = "gathers its keys" if detour.kept else f"runs along {detour.axis.name}"
        word = f"{kind} {where}, computed at {float(often):.0%} of the steps"
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
    )
