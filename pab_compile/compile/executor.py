"""Executor: runs a cut graph as a linear program, asking the decisions at every branch."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.structure import structure_key
from pab_compile.passes.rewrite.broadcast import StepBranch
from pab_compile.passes.rewrite.pieces import PRELUDE, Piece
from pab_compile.passes.sites.site import Site
from pab_compile.plans.decisions import Decision, Decisions
from pab_compile.plans.plan import Plan
from pab_compile.runtime.cache_entry import Slot, Tensors, copy_of
from pab_compile.runtime.generation import Generation, Place

from .lower import Function, PieceCompiler
from .merged_branch import Stretch


@dataclass(frozen=True, eq=False)
class Op:
    """One call of a piece.

    Attributes:
        function: the compiled piece.
        inputs: registers to read.
        outputs: (position in the result, register to write).
        frees: registers that nothing reads any more.
        site: number of the branch's site, or -1.
        prelude: number of the prelude, or -1.
        kept: for a prelude, the positions that a piece other than a prelude reads: these are held.
        is_returned: whether the caller gets a value of this piece, and may write to it.
    """

    function: Function
    inputs: tuple[int, ...]
    outputs: tuple[tuple[int, int], ...]
    frees: tuple[int, ...]
    site: int = -1
    prelude: int = -1
    kept: tuple[int, ...] = ()
    is_returned: bool = False


class Executor:
    """A lowered graph: pieces in order, with the decisions of a plan at every branch.

    Args:
        cut_graph: a graph of pieces and branches only (``passes.pieces``).
        compiler: compiles the pieces.
        plan: decides at run time.
        place: tells the graph from equal ones at other places of the forward.
        uncut: sites without a branch that count as computed at every step.
        in_timesteps: whether predictions extrapolate in timesteps rather than in steps.

    Attributes:
        identity: hash of the structure and the place. Dynamo may compile one graph several times
            (two threads at once, a dropped cache entry); such copies go on with each other's slots.
        sites: the sites that have a branch, in order.
        always_computed: kind -> number of its sites in ``uncut``.
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
        self.sites: list[Site] = []
        self.always_computed = Counter(site.kind for site in uncut)
        self._plan = plan
        self._must_copy = compiler.reuses_output_memory
        self._constants = dict(cut_graph.named_buffers(recurse=False))
        self._build(cut_graph, compiler, place)

    def _build(self, cut_graph: fx.GraphModule, compiler: PieceCompiler, place: str) -> None:
        nodes = list(cut_graph.graph.nodes)
        register = {node: index for index, node in enumerate(nodes)}
        self._num_registers = len(nodes)
        self._inputs = [register[node] for node in ir.placeholders(cut_graph.graph)]
        self._held = [
            (register[n], self._constants[str(n.target)]) for n in nodes if n.op == "get_attr"
        ]
        self._returned = ir.output_node(cut_graph.graph).args[0]
        self._returned_registers = [
            register[r] if isinstance(r, fx.Node) else None
            for r in self._returned  # type: ignore[union-attr]
        ]
        last_use = {source: node for node in nodes for source in node.all_input_nodes}
        kept = set(ir.outputs(cut_graph.graph))
        self._ops: list[Op] = []
        structure = [place]
        num_preludes = 0
        for node in nodes:
            if node.op != "call_module":
                continue
            module = cut_graph.get_submodule(str(node.target))
            site = prelude = -1
            if isinstance(module, StepBranch):
                site = len(self.sites)
                self.sites.append(module.site)
            elif isinstance(module, Piece) and module.sort == PRELUDE:
                prelude = num_preludes
                num_preludes += 1
            assert isinstance(module, (StepBranch, Piece)), node.target
            key = structure_key(module.compute)
            structure.append(f"{key} {[register[n] for n in node.all_input_nodes]}")
            if prelude >= 0:
                function: Function = module.compute.forward  # too seldom to be worth compiling
            elif isinstance(module, StepBranch) and module.site.parts:
                function = Stretch(module.compute, compiler)
            else:
                function = compiler.compile(module.compute, key)
            dying = [n for n in node.all_input_nodes if last_use[n] is node and n not in kept]
            self._ops.append(
                Op(
                    function=function,
                    inputs=tuple(register[n] for n in node.all_input_nodes),
                    outputs=tuple((int(u.args[1]), register[u]) for u in node.users),  # type: ignore[arg-type]
                    frees=tuple(register[n] for n in dying),
                    site=site,
                    prelude=prelude,
                    is_returned=any(user in kept for user in node.users),
                    kept=tuple(
                        int(u.args[1]) for u in node.users if not _feeds_preludes_only(u, cut_graph)
                    ),  # type: ignore[arg-type]
                )
            )
        self.identity = hashlib.sha256("\n".join(structure).encode()).hexdigest()

    def run(
        self, inputs: Sequence[torch.Tensor], place: Place | None
    ) -> tuple[torch.Tensor | None, ...]:
        """Run one step.

        Args:
            inputs: one tensor per placeholder.
            place: where this call belongs; None computes everything and keeps nothing.
        """
        registers: list[torch.Tensor | None] = [None] * self._num_registers
        for register, tensor in zip(self._inputs, inputs, strict=True):
            registers[register] = tensor
        for register, tensor in self._held:
            registers[register] = tensor
        if self._must_copy:
            torch.compiler.cudagraph_mark_step_begin()
        frame = None if place is None else _Frame(self, place)
        for op in self._ops:
            if op.site >= 0 and frame is not None:
                results = frame.visit_branch(op, registers)
            elif op.prelude >= 0 and frame is not None:
                results = frame.visit_prelude(op, registers)
            else:
                results = op.function(*[registers[i] for i in op.inputs])
            for position, register in op.outputs:
                registers[register] = results[position]
            for register in op.frees:
                registers[register] = None
        if frame is not None:
            frame.finish()
        return tuple(None if i is None else registers[i] for i in self._returned_registers)

    def decisions_of(self, generation: Generation) -> Decisions:
        """The decisions for this graph in a generation, made once."""
        if self.identity not in generation.decisions:
            generation.decisions[self.identity] = Decisions(
                self._plan, self.sites, generation.schedule, generation.first_timestep
            )
        return generation.decisions[self.identity]

    def kept(self, tensor: torch.Tensor, is_returned: bool = False) -> torch.Tensor:
        """A tensor that outlives the step: itself, or a copy where others may write to it."""
        return copy_of(tensor) if self._must_copy or is_returned else tensor

    def history_of(self, site: int) -> int:
        """Outputs to keep of a site when the future is unknown."""
        may_reuse = self._plan.may_reuse(self.sites[site])
        return self._plan.max_order(self.sites[site]) + 1 if may_reuse else 0


def _feeds_preludes_only(value: fx.Node, cut_graph: fx.GraphModule) -> bool:
    modules = [
        cut_graph.get_submodule(str(user.target)) if user.op == "call_module" else None
        for user in value.users
    ]
    return all(isinstance(module, Piece) and module.sort == PRELUDE for module in modules)


class _Frame:
    """One step of one lane: applies decisions to slots and preludes."""

    def __init__(self, executor: Executor, place: Place) -> None:
        self._executor = executor
        self._generation = generation = place.generation
        self._lane = place.lane
        self._record = place.record
        self._row = executor.decisions_of(generation).row(generation.step, generation.timestep)
        self._computed = [0] * len(executor.sites)
        self._timestep = generation.timestep_now if executor.in_timesteps else None
        self._start = time.perf_counter()

    def visit_branch(self, op: Op, registers: list[torch.Tensor | None]) -> Sequence[torch.Tensor]:
        """Load the site's slot if the decision says so and the slot holds what it should."""
        decision = self._row[op.site]
        slot = self._lane.slots.get((self._executor.identity, op.site))
        step = self._generation.step
        if self._may_reuse(decision, slot) and slot is not None:
            first = self._generation.first_reusable_step
            loaded = slot.load(step, decision.entry, self._timestep, first)
            if op.is_returned:
                loaded = tuple(map(copy_of, loaded))
            self._trim(op, slot, decision)
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
        held = self._lane.prelude.get(key)
        if held is None:
            computed = op.function(*[registers[i] for i in op.inputs])
            self._lane.prelude[key] = tuple(
                self._executor.kept(value) if position in op.kept else None
                for position, value in enumerate(computed)
            )
            return computed
        return held

    def finish(self) -> None:
        """Complete the record of this step, and free what the graph held after the last one."""
        generation, record = self._generation, self._record
        record.computed.update(self._executor.always_computed)
        for site, count in zip(self._executor.sites, self._computed, strict=True):
            counter = record.computed if count else record.reused
            counter.update(single.kind for single in site.singles)
        record.seconds += time.perf_counter() - self._start
        if not generation.records or generation.records[-1] is not record:
            generation.records.append(record)
        generation.measure()
        if generation.is_last_step:
            generation.close_lane(self._lane, self._executor.identity)

    def _may_reuse(self, decision: Decision, slot: Slot | None) -> bool:
        return (
            decision.reuses
            and self._generation.trusted
            and slot is not None
            and slot.last_step is not None
            and slot.last_step == decision.source
            and slot.last_step >= self._generation.first_reusable_step
        )

    def _store(self, op: Op, decision: Decision, tensors: Tensors) -> None:
        length = decision.history
        if length is None:
            length = self._executor.history_of(op.site)
        key = (self._executor.identity, op.site)
        if length == 0:
            self._lane.slots.pop(key, None)
            return
        kept = tuple(self._executor.kept(tensor, op.is_returned) for tensor in tensors)
        slot = self._lane.slots.setdefault(key, Slot())
        slot.store(self._generation.step, kept, length, self._timestep)

    def _trim(self, op: Op, slot: Slot, decision: Decision) -> None:
        if decision.history is None:
            return
        if decision.history == 0:
            self._lane.slots.pop((self._executor.identity, op.site), None)
        else:
            slot.drop_older_than(decision.history)
