"""Predict: what any number of ranks would exchange and compute for a program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from pab_compile.auto_split import AUTO_SHARD, AutoSplit
from pab_compile.compile.analysis import has_branch
from pab_compile.errors import OptionError, ShardingError
from pab_compile.options import Options, parse_options
from pab_compile.passes.axes.names import BATCH
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.flops import node_flops
from pab_compile.passes.parallel.choose import Choice, choose
from pab_compile.passes.parallel.detour import Detour
from pab_compile.passes.parallel.localise import localise
from pab_compile.passes.parallel.shard import Ranks
from pab_compile.passes.parallel.shard_tokens import local_sites
from pab_compile.passes.parallel.split_batch import first_part, lay_out_batch, shares_calls
from pab_compile.passes.program import Program
from pab_compile.passes.rewrite.coalesce import coalesce
from pab_compile.passes.rewrite.demand import sites_of_calls
from pab_compile.passes.sites.binding import Binding
from pab_compile.passes.sites.site import Site
from pab_compile.plans.plan import Plan
from pab_compile.plans.schedule import Schedule
from pab_compile.plans.share import computed_share, share_of_any

from .comm_report import CommReport, CommRow, Work
from .comm_rows import Often, Runs, at_the_end, exchange_of_calls, rows_of, runs_in
from .weights import rows_of_weights


def options_for(options: Mapping[str, Any] | None, num_ranks: int) -> Options:
    """The options, with the given number of ranks instead of their own.

    Raises:
        OptionError: the number of ranks is not a multiple of those that share the batch.
    """
    given = dict(options or {})
    if given.get("shard") == AUTO_SHARD or isinstance(given.get("shard"), AutoSplit):
        raise OptionError(
            "shard='auto' is chosen where ranks compile. pab_compile.splits predicts the same "
            "table: give the options of one of its rows."
        )
    if (mesh := given.pop("batch_mesh", None)) is not None:
        given["batch_parallel"] = mesh.size()
    given.pop("mesh", None)
    given.pop("sequence_parallel", None)
    num_batch = parse_options({"batch_parallel": given.get("batch_parallel")}).num_batch_ranks
    if num_ranks % num_batch:
        raise OptionError(
            f"num_ranks={num_ranks}, and {num_batch} ranks share the batch. Give a multiple of "
            f"{num_batch}."
        )
    return parse_options({**given, "sequence_parallel": num_ranks // num_batch})


def predict(program: Program, options: Options, num_ranks: int, schedule: Schedule) -> CommReport:
    """What ranks would exchange and compute for a model.

    Args:
        program: the model with its sites.
        options: they say how many ranks share the batch.
        num_ranks: number of all ranks.
        schedule: the steps of a generation.

    Raises:
        ShardingError: no axis can be sharded over so many ranks.
    """
    plan = options.make_plan()

    def share(site: Site) -> float:
        return computed_share(plan, site, schedule)

    num_steps = schedule.num_steps or 0
    num_batch = options.num_batch_ranks
    last: tuple[CommRow, ...] = ()
    if num_batch > 1 and shares_calls(program, num_batch):
        last = exchange_of_calls(program, num_steps)
        program = first_part(program, num_batch)
    elif num_batch > 1:
        layout = lay_out_batch(program, num_batch)
        last = at_the_end(layout, Ranks(num_batch), num_steps, "gather of the batch", BATCH)
        program = first_part(program, num_batch)
    ranks = Ranks(num_ranks // num_batch)
    choice = _choice(program, ranks, share, options)
    is_shared = choice is not None and (ranks.size > 1 or num_batch == 1)
    runs_for = _runs_for(program, plan, options.coalesce)
    part, runs = _one_rank(program, choice, ranks)
    exchanged_for = runs_for if part is program else _runs_for(part, plan, options.coalesce)
    reusable = [site for site in part.sites if site.can_broadcast]
    found = sites_of_calls(part.graph_module.graph, reusable)
    needed_by = {node.name: names for node, names in found.items()}

    def rows(often: Often, runs_for: Mapping[str, frozenset[str]]) -> tuple[CommRow, ...]:
        def once(node: fx.Node) -> bool:
            return runs_for.get(node.name) == frozenset()

        weights = rows_of_weights(part.graph_module.graph, num_steps, often, once)
        if ranks.size == 1 or choice is None:
            return (*last, *weights)
        return (*rows_of(program, choice, ranks, num_steps, often, runs), *last, *weights)

    @functools.cache
    def times(names: frozenset[str] | None) -> float:
        """The share of the steps at which what runs for some sites runs."""
        needed = [site for site in program.sites if names is not None and site.name in names]
        return share_of_any(plan, needed, schedule) if needed else 1.0

    def planned(nodes: Sequence[fx.Node]) -> float:
        return times(_sites_of(nodes, exchanged_for))

    def without(nodes: Sequence[fx.Node]) -> float:
        return float(_sites_of(nodes, needed_by) is None)

    return CommReport(
        axis=choice.option.name if is_shared and choice is not None else "",
        num_ranks=ranks.size,
        num_batch_ranks=num_batch,
        num_steps=num_steps,
        rows=rows(planned, exchanged_for),
        always=rows(lambda _: 1.0, needed_by),
        never=rows(without, needed_by),
        work=_work(program, choice, ranks, num_steps, lambda n: times(runs_for.get(n.name))),
        work_always=_work(program, choice, ranks, num_steps, lambda _: 1.0),
        computed=round(sum(num_steps * share(site) for site in program.sites), 6),
        reasons=(*program.sharding, *(choice.lines() if is_shared and choice is not None else ())),
    )


def _one_rank(program: Program, choice: Choice | None, ranks: Ranks) -> tuple[Program, Runs]:
    """The program whose calls show when ranks exchange, and these calls.

    It is that of one rank if ranks compute ops in full between shards. Else the given one will do.
    """
    if choice is None or not choice.layout.in_full:
        return program, (lambda _: ()) if choice is None else runs_in(choice.layout)
    local = localise(program.graph_module, choice.layout, ranks)
    sites = local_sites(program.sites, local)
    left = set(local.graph_module.graph.nodes)  # what nothing reads is not exchanged

    def runs(exchanged: Detour | fx.Node) -> Sequence[fx.Node]:
        is_detour = isinstance(exchanged, Detour)
        found = local.exchanges[exchanged] if is_detour else local.gathers.get(exchanged, ())
        return [node for node in found if node in left]

    return replace(program, graph_module=local.graph_module, sites=sites), runs


def _choice(
    program: Program, ranks: Ranks, share: Callable[[Site], float], options: Options
) -> Choice | None:
    """The axis that the ranks share. A single rank needs none."""
    try:
        return choose(program, ranks.size, share, options.axis, options.ring_parallel)
    except ShardingError:
        if ranks.size > 1:
            raise
        return None


def _sites_of(
    nodes: Sequence[fx.Node], runs_for: Mapping[str, frozenset[str]]
) -> frozenset[str] | None:
    """The sites that some calls run for; None if one of them runs at every step."""
    found = [runs_for.get(node.name) for node in nodes]
    return None if None in found else frozenset().union(*filter(None, found))


def _runs_for(program: Program, plan: Plan, coalesces: bool) -> dict[str, frozenset[str]]:
    """Calls that do not run at every step, by name, and the sites that each runs for."""
    graph, sites = program.graph_module.graph, program.sites
    if coalesces:
        done = coalesce(program.graph_module, sites, plan.pattern)
        graph, sites = done.graph_module.graph, done.sites
    if not any(site.can_broadcast and plan.may_reuse(site) for site in sites):
        return {}
    found = sites_of_calls(graph, [site for site in sites if has_branch(site, plan)])
    return {node.name: names for node, names in found.items()}


def _work(
    program: Program,
    choice: Choice | None,
    ranks: Ranks,
    num_steps: int,
    share: Callable[[fx.Node], float],
) -> Work:
    """FLOPs of contractions. What is the same at every step counts once."""
    shared: set[fx.Node] = set()
    part = 1.0
    if choice is not None:
        layout = choice.layout
        shared = {*layout.verdicts, *(n for detour in layout.detours for n in detour.verdicts)}
        part = ranks.counts(layout.axis.size)[0] / layout.axis.size
    found = {True: 0.0, False: 0.0}
    for node in ir.calls(program.graph_module.graph):
        once = ir.binding(node) in (Binding.CONSTANT, Binding.PROMPT)
        times = 1.0 if once else num_steps * share(node)
        found[node in shared] += times * node_flops(node)
    return Work(found[True] * part, found[False])
