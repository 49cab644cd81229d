"""A program: one captured graph, rewritten, lowered, and bound to the clock at run time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from pab_compile.passes import ir
from pab_compile.passes.capture import capture
from pab_compile.passes.pipeline import Program, analysis, rewriting, run_passes
from pab_compile.passes.sites import Site

from .board import board
from .clock import Reading, TimestepTable, read_timestep
from .dump import Dumper
from .executor import Executor
from .generation import Call, Generation, Lane
from .lower import PieceCompiler
from .options import Options
from .plan import Plan
from .report import describe_site, site_box
from .schedule import Schedule
from .scope import current_scope, stated_step


def analyse(
    dynamo_graph: fx.GraphModule, args: Sequence[Any], options: Options, plan: Plan, dumper: Dumper
) -> Program:
    """Capture a graph and find its sites, without rewriting anything."""
    program = Program(capture(dynamo_graph, args))
    run_passes(program, analysis(options.axes, options.cut), dumper.watch)
    plan.check(program.sites)
    dumper.sites(
        lambda: [describe_site(site, plan).to_json() for site in program.sites],
        lambda: [site_box(site, plan) for site in program.sites],
    )
    return program


def compile_program(
    dynamo_graph: fx.GraphModule,
    args: Sequence[Any],
    options: Options,
    plan: Plan,
    compiler: PieceCompiler,
    compilation: object,
) -> CompiledProgram:
    """Analyse, rewrite and lower a graph for inputs of these sizes.

    Args:
        dynamo_graph: the graph.
        args: Dynamo's inputs.
        options: how to compile it.
        plan: the plan that the options describe.
        compiler: compiles the pieces.
        compilation: the object that all graphs of one ``torch.compile`` call have in common.
    """
    dumper = Dumper(options.dump)
    program = analyse(dynamo_graph, args, options, plan, dumper)

    def wanted(site: Site) -> bool:
        # Attention always gets a branch: it is where equal blocks become equal pieces.
        return site.kind != "mlp" or plan.may_reuse(site)

    inputs = ir.placeholders(program.graph_module.graph)
    latents = inputs.index(program.inferred_axes.latents)
    clock = [node.name for node in inputs].index(program.clock)
    stated_steps = {name for name, value in options.axes.items() if value == "step"}
    held = [
        i
        for i, node in enumerate(inputs)
        if i not in (latents, clock)
        and not ir.is_constant_input(node)
        and ir.source(node) not in stated_steps
    ]
    weights = [i for i, node in enumerate(inputs) if ir.is_constant_input(node)]
    run_passes(program, rewriting(wanted), dumper.watch)
    executor = Executor(program.graph_module, compiler, plan)
    identity = weights[0] if weights else latents
    return CompiledProgram(executor, compiler, latents, clock, held, identity, compilation)


class CompiledProgram:
    """A lowered graph that knows which of its inputs are latents, clock and prompts.

    Args:
        executor: runs the pieces.
        compiler: where their statistics are.
        latents: position of the latents among the tensor inputs.
        clock: position of the timestep.
        held: positions of the per-prompt inputs.
        identity: position of a weight, by which the model is told from others that share this code.
        compilation: what tells this compilation of the model from others.
    """

    def __init__(
        self,
        executor: Executor,
        compiler: PieceCompiler,
        latents: int,
        clock: int,
        held: Sequence[int],
        identity: int,
        compilation: object,
    ) -> None:
        self._executor = executor
        self._compiler = compiler
        self._latents = latents
        self._clock = clock
        self._held = tuple(held)
        self._identity = identity
        self._compilation = compilation

    def __call__(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
        """Run one call of the model with the inputs of the captured graph."""
        weight = inputs[self._identity]
        tracker = current_scope().tracker(weight, self._compilation)
        place = tracker.place(self._call(inputs, tracker.table))
        try:
            outputs = self._executor.run(inputs, place)
        except BaseException:
            tracker.drop()
            raise
        if place is not None:
            self._publish(weight, *place)
        return outputs

    def _call(self, inputs: Sequence[torch.Tensor], table: TimestepTable | None) -> Call:
        stated = stated_step()
        prompts = tuple(inputs[i] for i in self._held)
        latents = inputs[self._latents]
        if stated is not None:
            schedule = Schedule(stated.num_steps)
            return Call(Reading(None), latents, prompts, stated.lane, stated.index, schedule)
        return Call(read_timestep(inputs[self._clock], table), latents, prompts)

    def _publish(self, weight: torch.Tensor, generation: Generation, lane: Lane) -> None:
        generation.num_pieces = self._compiler.num_pieces
        generation.compile_seconds = self._compiler.compile_seconds
        board.publish(weight, self._compilation, generation)
