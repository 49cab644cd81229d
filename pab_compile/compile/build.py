"""Build: from one Dynamo graph to something that runs, once per set of input sizes.

The steps are: capture, analyse, rewrite, lower. ``program`` holds what runs afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from pab_compile.calibration.observe import Probed
from pab_compile.errors import ObservationError, ShardingError, UnsupportedModelError
from pab_compile.options import FIRST_RANK, Options
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.flops import count_flops
from pab_compile.passes.graph.join import Given, Origin, Part
from pab_compile.passes.graph.open_sizes import NotOpenError, OpenSizes, resize
from pab_compile.passes.graph.opening import Opener
from pab_compile.passes.graph.ops import is_shard
from pab_compile.passes.parallel.overlap import Overlap
from pab_compile.passes.parallel.shard import Grid
from pab_compile.passes.parallel.shard_tokens import ShardTokens, refuse_own_exchanges
from pab_compile.passes.parallel.split_batch import SplitBatch
from pab_compile.passes.pipeline import Coalesce, rewriting
from pab_compile.passes.program import Pass, Program, run_passes
from pab_compile.passes.rewrite.coalesce import coalesce, merged_line
from pab_compile.passes.sites.find_sites import measured
from pab_compile.passes.sites.site import Site
from pab_compile.plans.cache_dtype import kept_bytes
from pab_compile.plans.live import NOTHING
from pab_compile.plans.plan import Plan
from pab_compile.plans.share import computed_share
from pab_compile.ranks.together import Together
from pab_compile.report.dump import Dumper
from pab_compile.report.explanation import Finding, site_boxes

from .adopting import Adopting
from .analysis import (
    Costs,
    Described,
    Known,
    analyse,
    finding,
    has_branch,
    has_sites,
    holds_attention,
    only_hoists,
    reason_of,
    untraced_finding,
    with_flops,
)
from .executor import Executor
from .floor import takes_graph, takes_part
from .half_batch import HalfBatch, halved
from .input_roles import InputRoles, roles_of
from .learn_sizes import learn_sizes
from .open_whole import plain_part
from .parts import captured_part, place_of, placed_at
from .program import CompiledProgram
from .request import Request
from .runnable import PlainProgram, Runnable
from .settings import Settings
from .untraced import may_be_whole, untraced

_log = logging.getLogger(__name__)


def compile_program(request: Request, settings: Settings) -> Runnable:
    """Compile a Dynamo graph for inputs of the sizes in the request.

    A graph without anything to reuse becomes a plain program if it is one of several graphs.

    Raises:
        UnsupportedModelError: the graph is the whole forward, and nothing in it can be reused.
        ShardingError: the ranks cannot share this model.
        ObservationError: a rank of a mesh cannot observe the whole model.
    """
    _check(request)
    settings = settings.for_form(request.form).with_stepping(request.clock, request.stepping)
    try:
        part = captured_part(request, settings)
    except Exception as error:
        if may_be_whole(error) and (found := _untraced(request, settings)) is not None:
            _log.info("runs as it is: %s", error)
            return found
        if request.alone or not isinstance(error, UnsupportedModelError):
            raise
        graph = (request.graph, request.args)
        is_taken = takes_graph(*graph, error, request.expected(), settings.options)
        return plain_program(request, settings, str(error), is_taken)
    if learn_sizes(part.graph_module, request, settings):
        try:
            sizes = ir.open_sizes(part.graph_module).given
            return _compiled(replace(part, sizes=sizes, is_fixed=False), request, settings)
        except NotOpenError as error:
            _log.info("compiled for these sizes alone: %s", error)
            part = captured_part(request, settings)
    return _compiled(part, request, settings)


def _compiled(part: Part, request: Request, settings: Settings) -> Runnable:
    """Compile a captured graph.

    Raises:
        NotOpenError: the graph has open sizes, and its pieces cannot be opened.
    """
    dumper = Dumper(settings.options.dump)
    program, found = _analysed(part, request, settings, dumper)
    once = program is not None and not request.is_observed and only_hoists(program, settings.plan)
    if program is None or not (once or has_sites(program, settings.plan)):
        if not found.sites:
            is_taken = takes_part(part, request.expected(), settings.options, request.alone)
            found = replace(found, takes_whole=is_taken)
        return plain_part(part, request, settings, found)
    if request.is_observed:
        settings = replace(settings, plan=NOTHING, live=None)
    reusable = (site for site in program.sites if site.can_broadcast)
    reuses = once or any(settings.plan.may_reuse(site) for site in reusable)
    roles = roles_of(program, part, request, settings.options)
    kept_bytes = _kept_bytes(program, settings.options) if request.is_observed else 0
    before = replace(program)
    found = _sharded_and_coalesced(found, program, request, settings, dumper)
    merged, opened = replace(program), ir.open_sizes(part.graph_module)
    _rewrite(program, request, settings, reuses, dumper)
    together = _together(part, roles, request, settings, program.shares_calls)
    executor = _lowered(program, request, settings, reuses, opened, together)
    executor.half_batch = HalfBatch(halved(before, request), settings.compiler)
    probed = _probed(program, part, executor, kept_bytes, settings.options)
    found = replace(found, notes=(*found.notes, *program.sharding, *program.coalesced))
    is_exact = program.num_apart == 0
    adopting = _adopting(request, settings, found, before, merged, None, is_exact)
    compilation = settings.compilation
    compiled = CompiledProgram(part, found, executor, roles, compilation, probed, adopting)
    if opened is None:
        return compiled

    def at_sizes(
        sizes: tuple[int, ...], origins: tuple[Origin | None, ...]
    ) -> CompiledProgram | None:
        if not opened.admits(sizes):
            return None
        resize(part.graph_module, sizes)
        resize(merged.graph_module, sizes)
        now = replace(before, sites=tuple(map(measured, before.sites)))
        then = replace(merged, sites=tuple(map(measured, merged.sites)))
        dtype = settings.options.keeping.dtype
        shown = finding(part, now, settings.plan, alone=request.alone, kept_in=dtype)
        costs = Costs.of(then, settings.plan, request.alone)
        if settings.options.coalesce:
            shown = shown.with_sums(then.sites, settings.plan, dtype)
            shown = with_flops(shown, costs, then.sites, settings.plan)
        pairs = zip(merged.sites, then.sites, strict=True)
        said = {merged_line(site): merged_line(resized) for site, resized in pairs if site.parts}
        shown = replace(shown, notes=tuple(said.get(note, note) for note in found.notes))
        adopting = _adopting(request, settings, shown, now, then, costs, is_exact)
        resized = executor.at(sizes, then.sites, place_of(origins, request.turn))
        placed = placed_at(part, sizes, origins, request.alone)
        return CompiledProgram(placed, shown, resized, roles, compilation, None, adopting)

    compiled.at_sizes = at_sizes
    return compiled


def _adopting(
    request: Request,
    settings: Settings,
    found: Finding,
    before: Program,
    merged: Program,
    costs: Costs | None,
    is_exact: bool,
) -> Adopting | None:
    """What takes over an exchanged plan; None if the plan is fixed."""
    if settings.live is None or request.form is None:
        return None
    keeping = settings.options.keeping
    costs = costs or Costs.of(merged, settings.plan, request.alone)
    described = Described(found, before.sites, merged.sites, costs, keeping.dtype)
    fitting = before.sites if request.alone else ()
    return Adopting(settings.live, request.form, fitting, is_exact, described.under)


def _untraced(request: Request, settings: Settings) -> CompiledProgram | None:
    """A graph that cannot be traced, as one branch; None if this is not possible or not wanted."""
    roles, plan = request.placed, settings.plan
    graph = None if roles is None or request.is_observed else untraced(request.graph, request.args)
    if roles is None or graph is None:
        return None
    place = place_of(request.origins, request.turn)
    in_timesteps = settings.options.predict_in == "timestep"
    decides = None if settings.live else plan
    keeping = settings.options.keeping
    executor = Executor(graph, settings.compiler, decides, place, (), in_timesteps, keeping)
    known = Known(roles.latents, roles.clock)
    found = untraced_finding(executor.sites, known, plan, keeping.dtype)
    weights = tuple(n for n, origin in enumerate(request.origins) if origin is None)
    roles = replace(roles, sees_all=False, weights=weights)
    adopting = None
    if settings.live is not None and request.form is not None:
        costs = Costs(0, {})  # nothing is known of its operations
        described = Described(found, executor.sites, executor.sites, costs, keeping.dtype)
        adopting = Adopting(settings.live, request.form, (), True, described.under)
    return CompiledProgram(None, found, executor, roles, settings.compilation, adopting=adopting)


def plain_program(
    request: Request, settings: Settings, reason: str, takes_whole: bool = False
) -> PlainProgram:
    """A Dynamo graph as it is, compiled by the inner compiler.

    Args:
        request: the graph and its inputs.
        settings: how to compile it.
        reason: why nothing of it is reused.
        takes_whole: whether its output could be reused as a whole.
    """
    whole = settings.compiler.compile_whole(request.graph, request.args)
    return PlainProgram(None, whole, Finding(reason=reason, takes_whole=takes_whole))


def _check(request: Request) -> None:
    """Refuse what several ranks cannot do."""
    if request.grid is None:
        return
    if request.is_observed:
        raise ObservationError(
            "Each rank of a mesh sees only its own part. Observe the model on one rank. The "
            "observation holds for any number of ranks."
        )


def _analysed(
    part: Part, request: Request, settings: Settings, dumper: Dumper
) -> tuple[Program | None, Finding]:
    """Find the sites; no program for a graph of several that cannot be analysed."""
    plan = NOTHING if request.is_observed else settings.plan
    try:
        known = Known(request.placed.latents, request.placed.clock) if request.placed else None
        program = analyse(
            part, settings.options, plan, dumper, request.alone, known, request.expected
        )
    except UnsupportedModelError as error:
        if request.alone:
            raise
        return None, finding(part, None, settings.plan, reason_of(error, part))
    kept_in = settings.options.keeping.dtype
    return program, finding(part, program, settings.plan, alone=request.alone, kept_in=kept_in)


def _kept_bytes(program: Program, options: Options) -> int:
    """Bytes of one output of every site or sum, if all sites were reused together."""
    sites = program.sites
    if options.coalesce:
        sites = coalesce(program.graph_module, sites, lambda site: "all alike").sites
    dtype = options.keeping.dtype
    return sum(kept_bytes(site, dtype) for site in sites if site.can_broadcast)


def _sharded_and_coalesced(
    found: Finding, program: Program, request: Request, settings: Settings, dumper: Dumper
) -> Finding:
    """Shard and coalesce. Returns the finding, with what sums take and save."""
    options, plan = settings.options, settings.plan
    # Of several graphs, that with the attentions is sharded. All ranks compute the others.
    grid = request.grid if request.alone or holds_attention(program) else None
    coalesces = options.coalesce and not request.is_observed  # an observation samples every site
    if coalesces and grid is not None:  # operations are those of the whole model
        whole = coalesce(program.graph_module, program.sites, plan.pattern)
        merged = replace(program, graph_module=whole.graph_module, sites=whole.sites)
        found = with_flops(found, Costs.of(merged, plan, alone=True), merged.sites, plan)
    if grid is not None:
        refuse_own_exchanges(program.graph_module.graph)
        run_passes(program, _sharding(grid, plan, options), dumper.watch)
        program.sharding = (*settings.sharing, *program.sharding)
        _log.info("\n".join(program.sharding))
    if coalesces:
        run_passes(program, (Coalesce(plan.pattern),), dumper.watch)
        _log.info("\n".join(program.coalesced))
        found = found.with_sums(program.sites, plan, options.keeping.dtype)
        dumper.sites(
            lambda: [site.to_json() for site in found.sites], lambda: site_boxes(found.sites)
        )
    is_whole = coalesces and grid is None
    if not is_whole:
        return found
    return with_flops(found, Costs.of(program, plan, request.alone), program.sites, plan)


def _rewrite(
    program: Program, request: Request, settings: Settings, reuses: bool, dumper: Dumper
) -> None:
    """Cut into branches and pieces."""

    def wanted(site: Site) -> bool:
        # If nothing is reused, cuts would only prevent fusion.
        return request.is_observed or (reuses and has_branch(site, settings.plan))

    passes = rewriting(wanted, request.num_samples, hoist=reuses or request.is_observed)
    run_passes(program, passes, dumper.watch)
    if request.grid is not None:
        run_passes(program, (Overlap(),), dumper.watch)


def _sharding(grid: Grid, plan: Plan, options: Options) -> tuple[Pass, ...]:
    """The passes that make the graph of one rank: its rows of the batch, then their tokens."""
    batch = (SplitBatch(grid.batch),) if grid.batch.size > 1 else ()
    share = partial(computed_share, plan)
    tokens = (
        (ShardTokens(grid.tokens, share, options.axis, options.ring_parallel),)
        if grid.tokens.size > 1
        else ()
    )
    return (*batch, *tokens)


def _lowered(
    program: Program,
    request: Request,
    settings: Settings,
    reuses: bool,
    opened: OpenSizes | None,
    together: Together | None,
) -> Executor:
    """Hand the pieces to the inner compiler."""
    uncut: Sequence[Site] = ()
    if not request.is_observed and not reuses:
        uncut = [site for site in program.sites if site.can_broadcast and site.kind != "mlp"]
    return Executor(
        program.graph_module,
        settings.compiler,
        None if settings.live else settings.plan,
        place_of(request.origins, request.turn),
        uncut,
        settings.options.predict_in == "timestep",
        settings.options.keeping,
        Opener(opened) if opened is not None else None,
        together,
    )


def _together(
    part: Part, roles: InputRoles, request: Request, settings: Settings, shares_calls: bool
) -> Together | None:
    """The ranks that run the graph; None for one rank."""
    if request.team is None:
        return None
    if shares_calls and (not request.alone or ir.mutated_inputs(part.graph_module)):
        why = "writes to its inputs" if request.alone else "breaks into several graphs"
        raise ShardingError(
            f"The model {why}, so halves of the ranks cannot share the two calls of a step. Leave "
            "batch_mesh and batch_parallel out."
        )
    nodes = ir.placeholders(part.graph_module.graph)
    names = [ir.source(node) for node in nodes]
    inputs = {
        number: names[number]
        for number, origin in enumerate(request.origins)
        if isinstance(origin, Given)
    }
    weights = {number: names[number] for number in roles.weights if not is_shard(nodes[number])}
    sends = settings.options.inputs == FIRST_RANK
    known = (roles.latents, roles.clock, roles.prompt_inputs)
    return Together(request.team, inputs, *known, weights, sends, shares_calls)


def _probed(
    program: Program, part: Part, executor: Executor, kept_bytes: int, options: Options
) -> Probed | None:
    """What the last outputs are samples of; None if there are no samples."""
    if not program.probed:
        return None
    return Probed(
        executor.identity,
        program.probed,
        program.num_probes,
        options.cut,
        options.coalesce,
        kept_bytes,
        count_flops(part.graph_module.graph.nodes),
    )
