"""Analysis: finds the sites of a captured graph, before anything is rewritten or lowered."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import fx

from pab_compile.errors import OFFER, InvariantError, PabError, UnsupportedModelError
from pab_compile.options import Options
from pab_compile.passes.axes.stated import by_entry, names_of
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.flops import count_flops, node_flops
from pab_compile.passes.graph.join import Joined, Part, join
from pab_compile.passes.graph.number_inputs import sounds_like_time
from pab_compile.passes.pipeline import FindSites, recognition
from pab_compile.passes.program import Program, narrow, run_passes
from pab_compile.passes.rewrite.demand import sites_of_calls
from pab_compile.passes.sites.binding import STATED_CLOCK, STATED_STEP, Binding, bind
from pab_compile.passes.sites.classify import has_mixer_ops
from pab_compile.passes.sites.hoisting import hoisted_nodes
from pab_compile.passes.sites.may_step import may_step
from pab_compile.passes.sites.site import OUTPUT, Site
from pab_compile.plans.form import reuses_nothing
from pab_compile.plans.plan import Plan
from pab_compile.report.dump import Dumper
from pab_compile.report.explanation import Finding, cache_bytes, describe_site, site_boxes

_log = logging.getLogger(__name__)
_REFUSALS = (UnsupportedModelError, InvariantError)


class NoAttentionError(UnsupportedModelError):
    """A graph has no attention. This is no error if it is one of several graphs."""


class Known(NamedTuple):
    """The names of the latents and the clock, if they are known without a graph.

    Attributes:
        latents: the tensor that is denoised.
        clock: the timestep.
        stepping: other inputs that change at every step.
    """

    latents: str
    clock: str
    stepping: tuple[str, ...] = ()


def analyse(
    part: Part,
    options: Options,
    plan: Plan,
    dumper: Dumper,
    alone: bool = True,
    known: Known | None = None,
    expected: Callable[[], Known | None] = lambda: None,
) -> Program:
    """Find the sites of a captured graph, without rewriting anything.

    Args:
        part: the graph, with the origins of its inputs.
        options: how to compile it.
        plan: the plan that the options describe.
        dumper: writes what the passes do.
        alone: whether the graph is the whole forward.
        known: latents and clock, if they are known without the graph. With ``cut="output"``, a
            graph of several then needs no analysis, and neither does one that does not allow it.
        expected: latents and clock of an earlier graph of the forward, or those that the call
            shows by its names. A graph without attention must find the same.

    Raises:
        UnsupportedModelError: the graph has no latents, no clock, or nothing to reuse.
    """
    if options.cut == OUTPUT and known is not None:
        return _whole(part, known, options, plan, dumper, alone)
    needs_mixers = options.cut != OUTPUT
    if needs_mixers and not alone and not has_mixer_ops(part.graph_module.graph):
        needs_mixers = False
    joined = join(part)
    stated = _stated(ir.placeholders(joined.graph_module.graph), options.axes, alone)
    program = Program(joined.graph_module)
    try:
        run_passes(program, recognition(stated, needs_mixers, dumper.is_on), dumper.watch)
    except UnsupportedModelError as error:
        if needs_mixers or options.cut == OUTPUT:
            raise
        if (found := _without_latents(joined, expected(), stated)) is not None:
            return narrow(found, joined, part.graph_module)
        raise NoAttentionError("No attention was found in this graph.") from error
    if not alone and not _is_confirmed(program, expected):
        raise NoAttentionError("What this graph denoises is not certain: it has no attention.")
    program = narrow(program, joined, part.graph_module)
    try:
        run_passes(program, (FindSites(options.cut),), dumper.watch)
    except UnsupportedModelError:
        if alone or (not program.sites and needs_mixers):
            raise
    if alone:
        plan.check(program.sites)
    dtype = options.keeping.dtype
    dumper.sites(
        lambda: [describe_site(site, plan, dtype).to_json() for site in program.sites],
        lambda: site_boxes([describe_site(site, plan, dtype) for site in program.sites]),
    )
    return program


def _is_confirmed(program: Program, expected: Callable[[], Known | None]) -> bool:
    """Whether the latents are certain. Attention shows them; other tokens may look like them."""
    if any(ir.binding(mixer.nodes[-1]) == Binding.LATENT for mixer in program.mixers):
        return True
    known = expected()
    return known is not None and known[:2] == (program.latents, program.clock)


def _without_latents(
    joined: Joined, known: Known | None, stated: Mapping[str, str]
) -> Program | None:
    """A graph that the latents or the clock do not reach; None if their names are not certain.

    What it computes from per-prompt inputs alone is the same at every step. These inputs
    distinguish lanes.
    """
    if known is None:
        return None
    graph = joined.graph_module.graph
    inputs = [node for node in ir.placeholders(graph) if not ir.is_constant_input(node)]
    latents = frozenset(node for node in inputs if ir.source(node) == known.latents)
    changing = {known.clock, *known.stepping}
    steps = frozenset(
        node
        for node in inputs
        if ir.source(node) in changing
        or sounds_like_time(ir.source(node))
        or stated.get(ir.source(node)) in (STATED_STEP, STATED_CLOCK)
    )
    bind(graph, latents, steps - latents)
    prompts = [node for node in inputs if ir.binding(node) == Binding.PROMPT]
    return Program(
        joined.graph_module,
        latents=known.latents,
        clock=known.clock,
        prompt_inputs=tuple(map(ir.source, prompts)),
        may_step=may_step(prompts, None, (), stated),
    )


def _whole(
    part: Part, known: Known, options: Options, plan: Plan, dumper: Dumper, alone: bool
) -> Program:
    """The output of a graph, of which nothing need be known but the forward's inputs."""
    if alone:
        try:
            return analyse(part, options, plan, dumper)  # it shows what to compute only once
        except Exception as error:
            if isinstance(error, PabError) and not isinstance(error, _REFUSALS):
                raise
            _log.info("%s", error)
    program = Program(part.graph_module, latents=known.latents, clock=known.clock)
    for node in part.graph_module.graph.nodes:
        is_weight = node.op in ("placeholder", "get_attr") and ir.is_constant_input(node)
        ir.set_binding(node, Binding.CONSTANT if is_weight else Binding.LATENT)
    run_passes(program, (FindSites(OUTPUT),), dumper.watch)
    if alone:
        plan.check(program.sites)
    return program


def _stated(inputs: Sequence[fx.Node], axes: Mapping[str, str], alone: bool) -> Mapping[str, str]:
    """What the user states of the inputs of a graph, by their full names."""
    own = [node for node in inputs if not ir.is_constant_input(node)]
    if not alone:  # a name may mean an input of another graph
        known = {name for node in own for name in names_of(node)}
        axes = {name: value for name, value in axes.items() if name in known}
    return by_entry(own, axes)


def finding(
    part: Part | None,
    program: Program | None,
    plan: Plan,
    reason: str = "",
    alone: bool = True,
    kept_in: torch.dtype | None = None,
) -> Finding:
    """What ``explain`` says of a graph, before its sites are rewritten.

    Args:
        part: the captured graph; None if it could not be captured.
        program: what was found in it; None if nothing can be broadcast.
        plan: the plan that the options describe.
        reason: why it is computed at every step.
        alone: whether the graph is the whole forward.
        kept_in: the dtype that outputs are kept in; None as they are.
    """
    nodes = part.graph_module.graph.nodes if part else ()
    if program is None:
        return Finding(num_nodes=len(nodes), total_flops=count_flops(nodes), reason=reason)
    costs = Costs.of(program, plan, alone)
    is_same = part is not None and part.graph_module is program.graph_module
    flops = costs.total if is_same else count_flops(nodes)
    found = Finding(
        sites=tuple(describe_site(site, plan, kept_in) for site in program.sites),
        num_nodes=len(nodes),
        total_flops=flops,
        clock=program.clock,
        latents=program.latents,
        notes=tuple(program.axes.notes) if program.axes else (),
        seconds=program.seconds,
        cache_bytes=cache_bytes(program.sites, plan, kept_in),
        reason=reason,
    )
    return with_flops(found, costs, program.sites, plan)


def untraced_finding(
    sites: Sequence[Site], known: Known, plan: Plan, kept_in: torch.dtype | None = None
) -> Finding:
    """What ``explain`` says of a graph that is one branch, without operations to count."""
    return Finding(
        sites=tuple(describe_site(site, plan, kept_in) for site in sites),
        clock=known.clock,
        latents=known.latents,
        cache_bytes=cache_bytes(sites, plan, kept_in),
        reuse_flops=0,
    )


def has_branch(site: Site, plan: Plan) -> bool:
    """Whether a site becomes a branch, if the plan reuses any site.

    Every attention does, since equal blocks become equal pieces at their attentions.
    """
    return site.can_broadcast and (site.kind != "mlp" or plan.may_reuse(site))


def has_sites(program: Program, plan: Plan) -> bool:
    """Whether a graph can reuse an attention, or the plan may reuse a branch of it."""
    sites = (site for site in program.sites if site.can_broadcast)
    return any(site.kind != "mlp" or program.mixers or plan.may_reuse(site) for site in sites)


def holds_attention(program: Program) -> bool:
    """Whether a graph holds an attention that can be reused."""
    return any(site.can_broadcast and site.kind != "mlp" for site in program.sites)


def only_hoists(program: Program, plan: Plan) -> bool:
    """Whether a graph of several has nothing to reuse, but computes something only once.

    Args:
        program: what was found in it.
        plan: the plan. If it reuses nothing, a graph is compiled as it is.
    """
    if reuses_nothing(plan) or has_sites(program, plan):
        return False
    hoisted = hoisted_nodes(program.graph_module.graph)
    return count_flops(n for n in ir.calls(program.graph_module.graph) if n in hoisted) > 0


def with_flops(found: Finding, costs: Costs, sites: Sequence[Site], plan: Plan) -> Finding:
    """A finding, with the operations of a step that reuses all sites that the plan may reuse.

    Args:
        found: the finding.
        costs: of the graph before it is cut into branches.
        sites: its sites. They are merged if they coalesce.
        plan: the plan.
    """
    return replace(found, reuse_flops=costs.of_reuse(sites, plan))


@dataclass(frozen=True)
class Costs:
    """The operations of a graph, by the sites that need them.

    Attributes:
        total: of the whole graph.
        needed: sites -> operations that need not run on a step that reuses all these sites.
        hoists: whether the graph computes something only once although it reuses nothing.
    """

    total: int
    needed: Mapping[frozenset[str], int]
    hoists: bool = False

    @staticmethod
    def of(program: Program, plan: Plan, alone: bool) -> Costs:
        """The operations of a graph, before it is cut into branches.

        Args:
            program: the graph. Its sites are merged if they coalesce.
            plan: says which sites have branches.
            alone: whether the graph is the whole forward.
        """
        graph = program.graph_module.graph
        branched = [site for site in program.sites if has_branch(site, plan)]
        runs_for = sites_of_calls(graph, branched)
        needed: Counter[frozenset[str] | None] = Counter()
        for node in graph.nodes:
            needed[runs_for.get(node)] += node_flops(node)
        total = needed.total()
        spared = {names: num for names, num in needed.items() if names is not None}
        return Costs(total, spared, not alone and only_hoists(program, plan))

    def of_reuse(self, sites: Sequence[Site], plan: Plan) -> int:
        """Operations of a step that reuses all sites that a plan may reuse.

        Args:
            sites: the sites.
            plan: the plan.
        """
        reused = {
            site.name for site in sites if site.can_broadcast and plan.may_reuse(site.singles[0])
        }
        spared = (num for names, num in self.needed.items() if names <= reused)
        return self.total - sum(spared) if reused or self.hoists else self.total


@dataclass(frozen=True, eq=False)
class Described:
    """What ``explain`` says of a graph, for all plans that it was compiled for.

    Attributes:
        found: what it says whatever the plan is.
        sites: the sites.
        merged: the sites that are cached, some of which are sums of others.
        costs: the operations of the graph.
        kept_in: the dtype that outputs are kept in; None as they are.
    """

    found: Finding
    sites: Sequence[Site]
    merged: Sequence[Site]
    costs: Costs
    kept_in: torch.dtype | None = None

    def under(self, plan: Plan) -> Finding:
        """What it says under a plan."""
        return replace(
            self.found,
            sites=tuple(describe_site(site, plan, self.kept_in) for site in self.sites),
            reuse_flops=self.costs.of_reuse(self.merged, plan),
        ).with_sums(self.merged, plan, self.kept_in)


def reason_of(error: PabError, part: Part | None) -> str:
    """Why a graph of several is computed at every step; ``""`` if it has no attention."""
    if isinstance(error, NoAttentionError):
        return ""
    inputs = ir.placeholders(part.graph_module.graph) if part else []
    made = ", ".join(repr(ir.source(node)) for node in inputs if ir.is_eager(node))
    if not made:
        return str(error)
    return f"{error} ({made}: made by Python code between two graphs, so its meaning is unknown)"


_GIVEN_UP = (
    "Dynamo names no reason for the breaks. It gives a forward up whose loop runs code that it "
    "cannot trace, such as a hook of a layer, and compiles only what that forward calls. "
    "TORCH_LOGS=graph_breaks shows such code. "
)


def nothing_found(findings: Sequence[Finding], breaks: Sequence[str]) -> UnsupportedModelError:
    """The error for a forward of several graphs in which nothing can be broadcast.

    Args:
        findings: one per graph. The reason is ``""`` for a graph without attention.
        breaks: per graph, why Dynamo broke the forward after it; ``""`` if it did not.
    """
    reasons = dict.fromkeys(finding.reason for finding in findings if finding.reason)
    found = "; ".join(reasons) or "none of them holds an attention"
    why = "; ".join(dict.fromkeys(filter(None, breaks)))
    offer = f" {OFFER}" if any(finding.takes_whole for finding in findings) else ""
    return UnsupportedModelError(
        f"Nothing can be broadcast in this forward of {len(findings)} graph(s): {found}. "
        + (f"Dynamo broke it up because of: {why}. " if why else _GIVEN_UP)
        + "Remove the breaks between the model's inputs and its attentions, or compile the "
        f"module that holds both.{offer}"
    )
