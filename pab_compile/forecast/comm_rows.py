"""The rows of ``comm``: what is exchanged for each op of a sharded graph, and how often."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import fx

from pab_compile.passes.axes.atoms import leaves
from pab_compile.passes.axes.names import BATCH
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.walk import feeding
from pab_compile.passes.parallel.choose import Choice
from pab_compile.passes.parallel.detour import Crossing, Detour
from pab_compile.passes.parallel.layout import Layout
from pab_compile.passes.parallel.shard import Ranks
from pab_compile.passes.parallel.traffic import convention_bytes, gathered_bytes, sent_bytes
from pab_compile.passes.program import Program
from pab_compile.passes.sites.site import Site

from .comm_report import CommRow

if TYPE_CHECKING:
    import sympy

Runs = Callable[[Detour | fx.Node], Sequence[fx.Node]]
"""A detour, or a value that is gathered -> the calls whose runs exchange for it."""
Often = Callable[[Sequence[fx.Node]], float]
"""Calls of the graph -> the share of the steps at which at least one of them runs."""
_NEXT = "next rank of the ring"
_TOKENS = ("t", "h", "w", "s")


@dataclass(frozen=True)
class _Exchanges:
    """What is exchanged for one op.

    Attributes:
        kind: of the site that it belongs to, or another name.
        along: the axis that is sharded in it.
        crossings: the tensors.
        runs: the ops whose runs need them.
    """

    kind: str
    along: str
    crossings: tuple[Crossing, ...]
    runs: Sequence[fx.Node]


def runs_in(layout: Layout) -> Runs:
    """The calls of the graph of one device that need an exchange."""

    def runs(exchanged: Detour | fx.Node) -> Sequence[fx.Node]:
        is_detour = isinstance(exchanged, Detour)
        return exchanged.core[-1:] if is_detour else layout.readers(exchanged)

    return runs


def _exchanges(program: Program, layout: Layout, runs: Runs) -> list[_Exchanges]:
    """What is exchanged for every op before the last attention."""
    found = []
    for detour in layout.detours:
        crossings = (*detour.entering, *detour.leaving)
        kind = _kind_of(detour.core[-1], program.sites)
        switched = tuple(crossing for crossing in crossings if not crossing.hop)
        passed = tuple(crossing for crossing in crossings if crossing.hop)
        for part, along in ((switched, detour.axis.name), (passed, _NEXT)):
            if part:
                found.append(_Exchanges(kind, along, part, runs(detour)))
    ends = _gathered_at_the_end(program, layout)
    for node in layout.gathers:
        if node not in ends:
            crossing = Crossing(node, layout.shards[node], None)
            kind = _kind_of(layout.readers(node)[0], program.sites)
            found.append(_Exchanges(kind, "every rank", (crossing,), runs(node)))
    return found


def _kind_of(node: fx.Node, sites: Sequence[Site]) -> str:
    site = next((site for site in sites if node in site.region), None)
    return site.kind if site is not None else "other op"


def _gathered_at_the_end(program: Program, layout: Layout) -> set[fx.Node]:
    """What is gathered after the last attention, and not for a site."""
    before = feeding([node for mixer in program.mixers for node in mixer.nodes])
    before |= {node for site in program.sites for node in site.region}
    return {
        node
        for node in layout.gathers
        if any(n.op == "output" or n not in before for n in layout.readers(node))
    }


def rows_of(
    program: Program, choice: Choice, ranks: Ranks, num_steps: int, often: Often, runs: Runs
) -> tuple[CommRow, ...]:
    """One row per group of equal exchanges, then what is gathered at the end."""
    import sympy

    layout = choice.layout
    groups: dict[tuple[Any, ...], list[_Exchanges]] = {}
    for each in _exchanges(program, layout, runs):
        if not each.runs:
            continue
        steps = round(num_steps * often(each.runs), 6)
        sizes = tuple(crossing.num_bytes for crossing in each.crossings)
        # Equal tensors may come with prompts of other lengths.
        sent = sum(sent_bytes(crossing, ranks) for crossing in each.crossings)
        groups.setdefault((each.kind, each.along, sizes, steps, sent), []).append(each)
    found = []
    for (kind, along, sizes, steps, sent), several in groups.items():
        crossings = several[0].crossings
        often_in_all = len(several) * steps
        tensors = [
            _closed_form(program, crossing.node, crossing.num_bytes)
            * (1 if crossing.target is not None else sympy.Symbol("N") - 1)
            * (2 if crossing.adds_up else 1)
            for crossing in crossings
        ]
        counted = sum(convention_bytes(crossing, ranks.size) for crossing in crossings)
        found.append(
            CommRow(
                what=kind,
                along=along,
                num_sites=len(several),
                collectives=len(sizes),
                computed_steps=steps,
                convention_bytes=float(counted * often_in_all),
                wire_bytes=sent * often_in_all,
                formula=len(several)
                * sympy.Symbol(f"steps_{kind}".replace(" ", "_"))
                * sympy.Add(*tensors)
                / sympy.Symbol("N"),
                neighbours=crossings[0].ring.num_heads if crossings[0].ring else 0,
                is_passed_on=crossings[0].hop > 0,
            )
        )
    ends = _gathered_at_the_end(program, layout)
    last = at_the_end(layout, ranks, num_steps, "gather at the end", choice.option.name, ends)
    return (*found, *last)


def at_the_end(
    layout: Layout,
    ranks: Ranks,
    num_steps: int,
    what: str,
    along: str,
    nodes: Collection[fx.Node] | None = None,
) -> tuple[CommRow, ...]:
    """What is gathered at every step: these values, or all that are gathered."""
    import sympy

    return tuple(
        CommRow(
            what=what,
            along=along,
            num_sites=1,
            collectives=1,
            computed_steps=num_steps,
            convention_bytes=0.0,
            wire_bytes=float(gathered_bytes(node, layout.shards[node], ranks) * num_steps),
            formula=sympy.Integer(0),
        )
        for node in layout.gathers
        if nodes is None or node in nodes
    )


def exchange_of_calls(program: Program, num_steps: int) -> tuple[CommRow, ...]:
    """What halves of the ranks exchange that compute one of two calls each.

    At the first step each of them computes both calls.
    """
    import sympy

    num_bytes = [ir.num_bytes(node) for node in ir.outputs(program.graph_module.graph)]
    steps = max(num_steps - 1, 0)
    return (
        CommRow(
            what="exchange of the two calls",
            along=BATCH,
            num_sites=1,
            collectives=len(num_bytes),
            computed_steps=steps,
            convention_bytes=0.0,
            wire_bytes=float(sum(num_bytes) * steps),
            formula=sympy.Integer(0),
        ),
    )


def _closed_form(program: Program, node: fx.Node, num_bytes: int) -> sympy.Expr:
    """Bytes of a tensor, as a product of the sizes of batch and token axes and a number."""
    import sympy

    axes = program.inferred_axes
    symbols: list[sympy.Symbol] = []
    rest = num_bytes
    for dim in axes.dims(node):
        for atom in leaves(dim):
            (role, *others) = (*axes.roles_of(atom), "")
            known = (BATCH, *_TOKENS)
            if role in known and others == [""] and rest % atom.size == 0 and not atom.parts:
                symbols.append(sympy.Symbol(role))
                rest //= atom.size
    return sympy.Integer(rest) * sympy.Mul(*symbols)
