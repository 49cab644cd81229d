"""Executor: runs a cut graph piece by piece. At every branch it asks the decisions."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from pab_compile.dynamo import torchs_own_functions
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.structure import structure_key
from pab_compile.passes.rewrite.broadcast import StepBranch
from pab_compile.passes.rewrite.pieces import PRELUDE, Piece
from pab_compile.passes.sites.site import Site
from pab_compile.plans.decisions import Decision, Decisions
from pab_compile.plans.nothing import why_nothing
from pab_compile.plans.plan import Plan
from pab_compile.runtime.cache_entry import CacheEntry, Tensors, copy_of
from pab_compile.runtime.generation import Generation, Place

from .lower import Function, PieceCompiler
from .merged_branch import MergedBranch


@dataclass(frozen=True, eq=False)
class Op:
    """One call of a piece.

    Attributes:
        function: the compiled piece.
        inputs: registers to read.
        outputs: (position in the result, register to write).
        frees: registers that no later op reads.
        site: number of the branch's site, or -1.
        prelude: number of the prelude, or -1.
        cached: for a prelude, the positions to cache: those that any other piece reads.
        is_returned: whether the caller gets a value of this piece, and may write to it.
    """

    function: Function
    inputs: tuple[int, ...]
    outputs: tuple[tuple[int, int], ...]
    frees: tuple[int, ...]
    site: int = -1
    prelude: int = -1
    cached: tuple[int, ...] = ()
    is_returned: bool = False


class Executor:
    """A lowered graph: pieces in order, with a decision at every branch.

    Args:
        cut_graph: a graph of pieces and branches only (``passes.rewrite.pieces``).
        compiler: compiles the pieces.
        plan: decides at run time.
        place: distinguishes the graph from equal ones at other places of the forward.
        uncut: sites without a branch, which count as computed at every step.
        in_timesteps: whether predictions extrapolate in timesteps rather than in steps.

    Attributes:
        in_timesteps: as given.
        uncut: as given.
        identity: hash of the structure and the place. Dynamo may compile one graph several times
            (two threads at once, a dropped cache entry); such
            copies use each other's cache entries.
        sites: the sites that have a branch, in order.
    """

    def __init__(
        self,
        cut_graph: fx.GraphModule,
        compiler: PieceCompiler,
        plan: Plan,
        place: str = "",
        uncut: Sequence[Site] = (),
        in_timesteps: bool = False,
    ) -> None:
        self.in_timesteps = in_timesteps
        self.uncut = uncut
        self.sites: list[Site] = []
        self._compiler = compiler
        self._plan = plan
        self._must_copy = compiler.reuses_output_memory
        self._constants = dict(cut_graph.named_buffers(recurse=False))
        self._lower(cut_graph, place)

    def _lower(self, cut_graph: fx.GraphModule, place: str) -> None:
        """Turn the graph into a list of ops on registers."""
        nodes = list(cut_graph.graph.nodes)
        register = {node: index for index, node in enumerate(nodes)}
        self._num_registers = len(nodes)
        self._inputs = [register[node] for node in ir.placeholders(cut_graph.graph)]
        self._constant_registers = [
            (register[n], self._constants[str(n.target)]) for n in nodes if n.op == "get_attr"
        ]
        self._returned_registers = [
            register[r] if isinstance(r, fx.Node) else None
            for r in ir.output_node(cut_graph.graph).args[0]  # type: ignore[union-attr]
        ]
        last_use = {source: node for node in nodes for source in node.all_input_nodes}
        returned = set(ir.outputs(cut_graph.graph))
        self._ops: list[Op] = []
        structure = [place]
        num_preludes = 0
        for node in cut_graph.graph.find_nodes(op="call_module"):
            module = cut_graph.get_submodule(str(node.target))
            assert isinstance(module, (StepBranch, Piece)), node.target
            site = prelude = -1
            if isinstance(module, StepBranch):
                site = len(self.sites)
                self.sites.append(module.site)
            elif module.sort == PRELUDE:
                prelude = num_preludes
                num_preludes += 1
            key = structure_key(module.compute)
            inputs = tuple(register[n] for n in node.all_input_nodes)
            structure.append(f"{key} {list(inputs)}")
            position = {user: int(user.args[1]) for user in node.users}  # type: ignore[arg-type]
            dying = [n for n in node.all_input_nodes if last_use[n] is node and n not in returned]
            self._ops.append(
                Op(
                    function=self._function(module, key),
                    inputs=inputs,
                    outputs=tuple((number, register[user]) for user, number in position.items()),
                    frees=tuple(register[n] for n in dying),
                    site=site,
                    prelude=prelude,
                    is_returned=any(user in returned for user in node.users),
                    cached=tuple(
                        number
                        for user, number in position.items()
                        if not _feeds_preludes_only(user, cut_graph)
                    ),
                )
            )
        self.identity = hashlib.sha256("\n".join(structure).encode()).hexdigest()

    def _function(self, module: StepBranch | Piece, key: str) -> Function:
        """What computes a piece or a branch."""
        if isinstance(module, Piece) and module.sort == PRELUDE:
            return module.compute.forward  # it runs too seldom to be worth compiling
        if isinstance(module, StepBranch) and module.site.parts:
            return MergedBranch(module.compute, self._compiler)
        return self._compiler.compile(module.compute, key)

    def run(
        self, inputs: Sequence[torch.Tensor], place: Place | None
    ) -> tuple[torch.Tensor | None, ...]:
        """Run one step.

        Args:
            inputs: one tensor per placeholder.
            place: where this call belongs; None computes everything and caches nothing.
        """
        with torchs_own_functions():
            return self._run(inputs, place)

    def _run(
        self, inputs: Sequence[torch.Tensor], place: Place | None
    ) -> tuple[torch.Tensor | None, ...]:
        registers: list[torch.Tensor | None] = [None] * self._num_registers
        for register, tensor in zip(self._inputs, inputs, strict=True):
            registers[register] = tensor
        for register, tensor in self._constant_registers:
            registers[register] = tensor
        if self._must_copy:
            torch.compiler.cudagraph_mark_step_begin()
        step = None if place is None else _LaneStep(self, place)
        for op in self._ops:
            if op.site >= 0 and step is not None:
                results = step.visit_branch(op, registers)
            elif op.prelude >= 0 and step is not None:
                results = step.visit_prelude(op, registers)
            else:
                results = op.function(*[registers[i] for i in op.inputs])
            for position, register in op.outputs:
                registers[register] = results[position]
            for register in op.frees:
                registers[register] = None
        if step is not None:
            step.finish()
        return tuple(None if i is None else registers[i] for i in self._returned_registers)

    def decisions_of(self, generation: Generation) -> Decisions:
        """The decisions for this graph in a generation, made once."""
        if self.identity not in generation.decisions:
            schedule = generation.schedule
            generation.decisions[self.identity] = Decisions(
                self._plan, self.sites, schedule, generation.first_timestep
            )
            if schedule.is_known:
                kinds = {site.kind for site in (*self.sites, *self.uncut)}
                generation.record.why_nothing = why_nothing(self._plan, kinds, schedule)
        return generation.decisions[self.identity]

    def cacheable(self, tensor: torch.Tensor, is_returned: bool = False) -> torch.Tensor:
        """A tensor that outlives the step: itself, or a copy if others may write to it."""
        return copy_of(tensor) if self._must_copy or is_returned else tensor

    def history_of(self, site: int) -> int:
        """Number of outputs to cache of a site if the later steps are unknown."""
        may_reuse = self._plan.may_reuse(self.sites[site])
        return self._plan.max_order(self.sites[site]) + 1 if may_reuse else 0

    def report(self, generation: Generation) -> None:
        """Tell a generation's statistics what was compiled for it so far."""
        compiled = (self._compiler.num_pieces, self._compiler.compile_seconds)
        generation.record.compilers[id(self._compiler)] = compiled


def _feeds_preludes_only(value: fx.Node, cut_graph: fx.GraphModule) -> bool:
    modules = [
        cut_graph.get_submodule(str(user.target)) if user.op == "call_module" else None
        for user in value.users
    ]
    return all(isinstance(module, Piece) and module.sort == PRELUDE for module in modules)


class _LaneStep:
    """One step of one lane: applies decisions to cache entries and preludes."""

    def __init__(self, executor: Executor, place: Place) -> None:
        self._executor = executor
        self._generation = generation = place.generation
        self._lane = place.lane
        self._record = place.record
        self._decisions = executor.decisions_of(generation).at(generation.step, generation.timestep)
        self._computed = [0] * len(executor.sites)
        self._timestep = generation.timestep_now if executor.in_timesteps else None
        self._start = time.perf_counter()

    def visit_branch(self, op: Op, registers: list[torch.Tensor | None]) -> Sequence[torch.Tensor]:
        """Load the site's cache entry if the decision says so, else compute and store."""
        decision = self._decisions[op.site]
        cached = self._lane.cache.get((self._executor.identity, op.site))
        step = self._generation.step
        if self._may_reuse(decision, cached) and cached is not None:
            first = self._generation.first_reusable(self._lane)
            loaded = cached.load(step, decision.entry, self._timestep, first)
            if op.is_returned:
                loaded = tuple(map(copy_of, loaded))
            self._trim(op, cached, decision)
            return loaded
        self._computed[op.site] = 1
        results = op.function(*[registers[i] for i in op.inputs])
        if not decision.reuses and self._generation.trusted:
            self._store(op, decision, tuple(results))
        return results

    def visit_prelude(
        self, op: Op, registers: list[torch.Tensor | None]
    ) -> Sequence[torch.Tensor | None]:
        """Compute what is the same at every step once per lane."""
        key = (self._executor.identity, op.prelude)
        cached = self._lane.prelude.get(key)
        if cached is not None:
            return cached
        computed = op.function(*[registers[i] for i in op.inputs])
        self._lane.prelude[key] = tuple(
            self._executor.cacheable(value) if position in op.cached else None
            for position, value in enumerate(computed)
        )
        return computed

    def finish(self) -> None:
        """Complete the record of this step. After the last step, free the graph's cache."""
        generation, record = self._generation, self._record
        record.computed.update(site.kind for site in self._executor.uncut)
        for site, count in zip(self._executor.sites, self._computed, strict=True):
            counter = record.computed if count else record.reused
            counter.update(single.kind for single in site.singles)
        record.seconds += time.perf_counter() - self._start
        generation.finish_call(self._lane, record, self._executor.identity)

    def _may_reuse(self, decision: Decision, cached: CacheEntry | None) -> bool:
        if not decision.reuses or not self._generation.trusted:
            return False
        if cached is None or cached.last_step is None or cached.last_step != decision.source:
            return False
        return self._generation.may_reuse_from(self._lane, cached.last_step)

    def _store(self, op: Op, decision: Decision, tensors: Tensors) -> None:
        length = decision.history
        if length is None:
            length = self._executor.history_of(op.site)
        key = (self._executor.identity, op.site)
        if length == 0:
            self._lane.cache.pop(key, None)
            return
        copies = tuple(self._executor.cacheable(tensor, op.is_returned) for tensor in tensors)
        cached = self._lane.cache.setdefault(key, CacheEntry())
        cached.store(self._generation.step, copies, length, self._timestep)

    def _trim(self, op: Op, cached: CacheEntry, decision: Decision) -> None:
        if decision.history is None:
            return
        if decision.history == 0:
            self._lane.cache.pop((self._executor.identity, op.site), None)
        else:
            cached.drop_older_than(decision.history)
