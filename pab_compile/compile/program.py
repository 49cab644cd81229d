"""A program: one captured graph, rewritten, lowered, and bound to the clock at run time."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import fx

from pab_compile.calibration.observe import Probed, current_observer
from pab_compile.calibration.stopwatch import now
from pab_compile.errors import ObservationError, ShardingError, UnsupportedModelError
from pab_compile.options import Options
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.capture import capture
from pab_compile.passes.graph.flops import count_flops
from pab_compile.passes.graph.join import Eager, Made, Origin, Part
from pab_compile.passes.graph.outline import copy_graph
from pab_compile.passes.graph.structure import structure_key
from pab_compile.passes.parallel.overlap import Overlap
from pab_compile.passes.parallel.shard import Grid
from pab_compile.passes.parallel.shard_tokens import ShardTokens, refuse_own_exchanges
from pab_compile.passes.parallel.split_batch import SplitBatch
from pab_compile.passes.pipeline import Coalesce, rewriting
from pab_compile.passes.program import Pass, run_passes
from pab_compile.passes.rewrite.coalesce import coalesce
from pab_compile.passes.sites.site import Site
from pab_compile.plans.plan import Plan, RangePlan
from pab_compile.plans.schedule import Schedule
from pab_compile.plans.share import computed_share
from pab_compile.report.dump import Dumper
from pab_compile.report.explanation import Finding, cache_bytes
from pab_compile.runtime.clock import Reading, read_timestep
from pab_compile.runtime.forward import Forward, Ran, callers
from pab_compile.runtime.generation import Call, Place
from pab_compile.runtime.last_runs import board
from pab_compile.runtime.scope import current_scope, stated_step
from pab_compile.runtime.stats import StepRecord
from pab_compile.runtime.tracker import Tracker

from .analysis import analyse, finding, reason_of
from .executor import Executor
from .lower import PieceCompiler

_log = logging.getLogger(__name__)

_REPEATED = (
    "a graph ran twice in one forward, or with other weights than in the step before, so its "
    "outputs were not reused: which of them belong together is unknown"
)


def compile_program(
    dynamo_graph: fx.GraphModule,
    args: Sequence[Any],
    origins: tuple[tuple[Origin | None, ...], frozenset[int]],
    options: Options,
    plan: Plan,
    compiler: PieceCompiler,
    compilation: object,
    alone: bool,
    grid: Grid | None = None,
    num_samples: int | None = None,
) -> Runnable:
    """Analyse, rewrite and lower a graph for inputs of these sizes.

    Args:
        dynamo_graph: the graph.
        args: Dynamo's inputs.
        origins: where its tensors come from, and which of them may change without notice.
        options: how to compile it.
        plan: the plan that the options describe.
        compiler: compiles the pieces.
        compilation: the object that all graphs of one ``torch.compile`` call have in common.
        alone: whether the graph is the whole forward. One of several that cannot be analysed is
            computed at every step.
        grid: the ranks that share the tokens and the batch, if several do.
        num_samples: compute every site at every step, and return samples of what they would cache.
    """
    asked = plan
    if num_samples is not None:
        plan = RangePlan({}, (0.0, 1.0), {})
        if grid is not None:
            raise ObservationError(
                "Each rank of a mesh sees its own part only: observe the model on one rank. What "
                "is found there holds for any number of them."
            )
    if grid is not None and not alone:
        raise ShardingError(
            "The forward breaks into several graphs, and tokens are sharded in a graph that is the "
            "whole forward only. Remove the graph breaks (torch.compile(..., fullgraph=True) names "
            "them), or run on one rank."
        )
    if grid is not None and any(isinstance(origin, Eager) for origin in origins[0]):
        raise ShardingError(
            "Sizes in this model depend on values (nonzero, item), so ranks that share its tokens "
            "could come to other sizes. Compute them before the call, or run on one rank."
        )
    place = _place_of(origins[0])
    try:
        captured = capture(dynamo_graph, args)
    except UnsupportedModelError as error:
        if alone:
            raise
        whole = compiler.compile_whole(dynamo_graph, args)
        return PlainProgram(None, whole, Finding(reason=str(error)))
    # Graphs behind it name it by this; one that is alone has none.
    identity = "" if alone else f"{structure_key(captured)} {place}"
    part = Part(captured, *origins, hashlib.sha256(identity.encode()).hexdigest())
    dumper = Dumper(options.dump)
    try:
        program, reason = analyse(part, options, plan, dumper, alone), ""
    except UnsupportedModelError as error:
        if alone:
            raise
        program, reason = None, reason_of(error, part)
    found = finding(part, program, asked, reason)
    if program is None or not any(site.can_broadcast for site in program.sites):
        whole = copy_graph(part.graph_module)  # inner compilers rewrite what they are given
        return PlainProgram(part, compiler.compile(whole, structure_key(whole)), found)

    reusing = any(plan.may_reuse(site) for site in program.sites if site.can_broadcast)

    def wanted(site: Site) -> bool:
        # Attention gets a branch beside any that is reused: it is where equal blocks become equal
        # pieces. With nothing to reuse, seams would only keep the inner compiler from fusing.
        wanted_by_plan = reusing and (site.kind != "mlp" or plan.may_reuse(site))
        return num_samples is not None or wanted_by_plan

    inputs = ir.placeholders(part.graph_module.graph)
    roles = InputRoles(
        latents=ir.source(program.inferred_axes.latents),
        clock=program.clock,
        held=program.held,
        stepping=(*program.stepping, *(n for n, role in options.axes.items() if role == "step")),
        sees_all=alone,
        is_blind=program.has_eager_inputs and not alone,
        weights=tuple(i for i, node in enumerate(inputs) if ir.is_constant_input(node)),
    )
    if grid is not None:
        refuse_own_exchanges(program.graph_module.graph)
        run_passes(program, _sharding(grid, plan, options.shard), dumper.watch)
        _log.info("\n".join(program.sharding))
    kept = program.sites
    if options.coalesce and num_samples is not None:
        kept = coalesce(program.graph_module, program.sites, lambda site: "all alike").sites
    elif options.coalesce:
        run_passes(program, (Coalesce(plan.pattern),), dumper.watch)
        _log.info("\n".join(program.coalesced))
        found = replace(found, cache_bytes=cache_bytes(program.sites, plan))
    run_passes(program, rewriting(wanted, num_samples), dumper.watch)
    if grid is not None:
        run_passes(program, (Overlap(),), dumper.watch)
    attentions = [site for site in program.sites if site.can_broadcast and site.kind != "mlp"]
    uncut = () if reusing or num_samples is not None else attentions
    in_timesteps = options.predict_in == "timestep"
    executor = Executor(program.graph_module, compiler, plan, place, uncut, in_timesteps)
    probed = Probed(
        executor.identity,
        program.probed,
        program.num_probes,
        options.cut,
        options.coalesce,
        sum(site.cache_bytes for site in kept if site.can_broadcast),
        count_flops(part.graph_module.graph.nodes),
    )
    found = replace(found, notes=(*found.notes, *program.sharding, *program.coalesced))
    return CompiledProgram(part, found, executor, compiler, roles, compilation, uncut, probed)


def _sharding(grid: Grid, plan: Plan, axis: str | None) -> tuple[Pass, ...]:
    """The passes that make the graph of one rank: its rows of the batch, then their tokens."""
    batch = (SplitBatch(grid.batch),) if grid.batch.size > 1 else ()
    share = partial(computed_share, plan)
    tokens = (ShardTokens(grid.tokens, share, axis),) if grid.tokens.size > 1 else ()
    return (*batch, *tokens)


def _place_of(origins: Sequence[Origin | None]) -> str:
    """Tells a graph from equal ones at other places of a forward: by what it reads."""
    words = [
        f"{origin.part.identity}.{origin.position}" if isinstance(origin, Made) else str(origin)
        for origin in origins
        if origin is not None
    ]
    return " ".join(words)


@dataclass(frozen=True)
class InputRoles:
    """What the inputs of a graph, and of those that feed it, are to the model's caller.

    Attributes:
        latents: name of what is denoised.
        clock: name of the timestep.
        held: names of the per-prompt inputs.
        stepping: names of other inputs that change at every step.
        sees_all: whether the graph is the whole forward, so that other inputs do not matter.
        is_blind: whether some of it comes from Python code between the graphs. What is measured for
            a graph that is the whole forward comes from its own inputs, all of which are known.
        weights: positions of the weights, which tell the model from others that share its code.
    """

    latents: str
    clock: str
    held: tuple[str, ...]
    stepping: tuple[str, ...]
    sees_all: bool
    is_blind: bool
    weights: tuple[int, ...]


class Runnable(Ran, Protocol):
    """A graph of a forward, ready to run."""

    def __call__(
        self, forward: Forward, args: Sequence[Any], tensors: Sequence[torch.Tensor]
    ) -> Any:
        """Run it in a forward, with Dynamo's inputs and the tensors among them."""
        ...


class PlainProgram:
    """A graph that is computed at every step.

    Args:
        part: the graph as it was captured; then ``function`` takes its tensors.
        function: computes it.
        finding: what was found in it, with the reason why it is computed at every step.
    """

    def __init__(self, part: Part | None, function: Callable[..., Any], finding: Finding) -> None:
        self.part = part
        self.sites: Sequence[Site] = ()
        self.finding = finding
        self._function = function

    def __call__(
        self, forward: Forward, args: Sequence[Any], tensors: Sequence[torch.Tensor]
    ) -> Any:
        """Compute it."""
        if self.part is None:
            outputs = self._function(*args)
        else:
            outputs = _written_back(self.part, tensors, self._function(*tensors))
        forward.finish(self, tensors, outputs)
        return outputs


class CompiledProgram:
    """A lowered graph that knows what its inputs are.

    Args:
        part: the graph as it was captured.
        finding: what was found in it.
        executor: runs the pieces.
        compiler: where their statistics are.
        roles: which input is what.
        compilation: what tells this compilation of the model from others.
        uncut: sites without a branch, where the plan reuses none.
        probed: what the graph's last outputs are samples of.
    """

    def __init__(
        self,
        part: Part,
        finding: Finding,
        executor: Executor,
        compiler: PieceCompiler,
        roles: InputRoles,
        compilation: object,
        uncut: Sequence[Site] = (),
        probed: Probed | None = None,
    ) -> None:
        self.part = part
        self.sites: Sequence[Site] = [s for site in executor.sites for s in site.singles] or uncut
        self.finding = finding
        self._executor = executor
        self._compiler = compiler
        self._roles = roles
        self._compilation = compilation
        self._probed = probed if probed is not None and probed.sites else None

    def __call__(
        self, forward: Forward, args: Sequence[Any], tensors: Sequence[torch.Tensor]
    ) -> Any:
        """Run one call of the model with the inputs of the captured graph."""
        weights = [tensors[position] for position in self._roles.weights]
        weights = weights or [forward.inputs[self._roles.latents]]
        if forward.tracker is None:
            forward.tracker = current_scope().tracker(weights, self._compilation)
        tracker, is_first = forward.tracker, not forward.is_placed
        place = self._place(forward, tracker, weights)
        outputs = self._executor.run(tensors, place)
        if self._probed is not None:
            number = self._probed.num_probes
            outputs, samples = outputs[:-number], outputs[-number:]
            if (observer := current_observer()) is not None:
                observer.record(self._probed, place, weights, samples)  # type: ignore[arg-type]
        outputs = _written_back(self.part, tensors, outputs)
        if place is not None:
            compiled = (self._compiler.num_pieces, self._compiler.compile_seconds)
            place.generation.compilers[id(self._compiler)] = compiled
            if is_first:
                board.publish(weights, self._compilation, place.generation, forward)
        forward.finish(self, tensors, outputs)
        return outputs

    def _place(
        self, forward: Forward, tracker: Tracker, weights: Sequence[torch.Tensor]
    ) -> Place | None:
        """Where this call belongs; the first graph of a forward that has sites finds out."""
        tracker.held |= dict.fromkeys(self._roles.held)
        if not forward.is_placed:
            forward.is_placed = True
            found = tracker.place(self._call(forward, tracker))
            if found is not None:
                forward.place = Place(*found, StepRecord(found[0].step, started=now()))
                found[1].has_weights(self._executor.identity, weights)
                for reason in filter(None, (ran.reason for ran in forward.findings)):
                    found[0].note(reason)
            return forward.place
        place = forward.place
        if place is None or place.generation.closed or place.generation is not tracker.generation:
            return None
        if self in forward.visited or not place.lane.has_weights(self._executor.identity, weights):
            place.generation.note(_REPEATED)
            return None
        if not place.lane.carries(forward.inputs, self._roles.held):
            return None
        return place

    def _call(self, forward: Forward, tracker: Tracker) -> Call:
        roles = self._roles
        others = {roles.latents, roles.clock, *roles.stepping}
        others |= {callers(name) for name in others}
        prompts = {name: t for name, t in forward.inputs.items() if name not in others}
        names: tuple[str, ...] | None = None
        if not roles.is_blind:
            names = tuple(dict.fromkeys((*roles.held, *tracker.held)))
        if roles.sees_all:
            prompts = {name: prompts[name] for name in roles.held}
        latents = forward.inputs[roles.latents]
        stated = stated_step()
        if stated is not None:
            schedule = Schedule(stated.num_steps)
            return Call(
                Reading(None), latents, prompts, names, roles.is_blind,
                stated.lane, stated.index, schedule,
            )  # fmt: skip
        reading = read_timestep(forward.inputs[roles.clock], tracker.table)
        return Call(reading, latents, prompts, names, roles.is_blind)


def _written_back(
    part: Part, inputs: Sequence[torch.Tensor], outputs: Sequence[Any]
) -> Sequence[Any]:
    """Write to the inputs what the graph would have written, and leave it out of the outputs."""
    written = ir.mutated_inputs(part.graph_module)
    for number, value in zip(written, outputs, strict=False):
        inputs[number].copy_(value)
    return outputs[len(written) :]
