"""A program: one captured graph, rewritten, lowered, and bound to the clock at run time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from pab_compile.passes import ir
from pab_compile.passes.binding import Binding
from pab_compile.passes.capture import capture
from pab_compile.passes.pipeline import Program, analysis, rewriting, run_passes
from pab_compile.passes.sites import Site

from .board import board
from .clock import Reading, TimestepTable, read_timestep
from .dump import Dumper
from .executor import Executor
from .generation import Call, Generation
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
    held = [i for i, node in enumerate(inputs) if ir.binding(node) == Binding.PROMPT]
    weights = [i for i, node in enumerate(inputs) if ir.is_constant_input(node)]
    run_passes(program, rewriting(wanted), dumper.watch)
    executor = Executor(program.graph_module, compiler, plan)
    roles = InputRoles(latents, clock, tuple(held), tuple(weights or [latents]))
    return CompiledProgram(executor, compiler, roles, compilation)


@dataclass(frozen=True)
class InputRoles:
    """Positions among the inputs of a captured graph.

    Attributes:
        latents: what is denoised.
        clock: the timestep.
        held: the per-prompt inputs.
        weights: what tells the model from others that share its code.
    """

    latents: int
    clock: int
    held: tuple[int, ...]
    weights: tuple[int, ...]


class CompiledProgram:
    """A lowered graph that knows what its inputs are.

    Args:
        executor: runs the pieces.
        compiler: where their statistics are.
        roles: which input is what.
        compilation: what tells this compilation of the model from others.
    """

    def __init__(
        self, executor: Executor, compiler: PieceCompiler, roles: InputRoles, compilation: object
    ) -> None:
        self._executor = executor
        self._compiler = compiler
        self._roles = roles
        self._compilation = compilation

    def __call__(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
        """Run one call of the model with the inputs of the captured graph."""
        weights = [inputs[position] for position in self._roles.weights]
        tracker = current_scope().tracker(weights, self._compilation)
        place = tracker.place(self._call(inputs, tracker.table))
        try:
            outputs = self._executor.run(inputs, place)
        except BaseException:
            tracker.drop()
            raise
        if place is not None:
            self._publish(weights, place[0])
        return outputs

    def _call(self, inputs: Sequence[torch.Tensor], table: TimestepTable | None) -> Call:
        stated = stated_step()
        prompts = tuple(inputs[i] for i in self._roles.held)
        latents = inputs[self._roles.latents]
        if stated is not None:
            schedule = Schedule(stated.num_steps)
            return Call(Reading(None), latents, prompts, stated.lane, stated.index, schedule)
        return Call(read_timestep(inputs[self._roles.clock], table), latents, prompts)

    def _publish(self, weights: Sequence[torch.Tensor], generation: Generation) -> None:
        generation.num_pieces = self._compiler.num_pieces
        generation.compile_seconds = self._compiler.compile_seconds
        board.publish(weights, self._compilation, generation)
