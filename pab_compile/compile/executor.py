"""Executor: runs a cut graph piece by piece. At every branch it asks the decisions.

What only reused branches need does not run (``demanded`` pieces, ``passes.rewrite.pieces``).
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections import Counter
from collections.abc import Sequence

import torch
from torch import fx

from pab_compile.dynamo import torchs_own_functions
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.opening import Opener
from pab_compile.passes.graph.size import at_size, plain
from pab_compile.passes.rewrite.broadcast import StepBranch
from pab_compile.passes.rewrite.pieces import DEMANDED, PRELUDE, WATCHED, Piece
from pab_compile.passes.sites.site import Site
from pab_compile.plans.budget import DEFAULT_BUDGET, Claim, claims_of, free_bytes, in_bytes
from pab_compile.plans.cache_dtype import NARROWEST
from pab_compile.plans.decisions import Decisions
from pab_compile.plans.form import check_together
from pab_compile.plans.keeping import AS_COMPUTED, Keeping
from pab_compile.plans.nothing import why_nothing
from pab_compile.plans.plan import Plan
from pab_compile.ranks.sends import exchanged_in
from pab_compile.ranks.together import Together
from pab_compile.report.timeline import Row
from pab_compile.runtime.cache_entry import copy_of
from pab_compile.runtime.generation import Generation, Place
from pab_compile.runtime.kept import Held, converted
from pab_compile.runtime.transfers import Transfers, transfers_of

from .half_batch import NOT_ANALYSED, HalfBatch
from .lane_step import LaneStep
from .lower import PieceCompiler
from .lowering import Lowering
from .merged_branch import at_sizes
from .op import Op
from .wiring import feeds_preludes_only, made_by_python, num_read, starts_of

_log = logging.getLogger(__name__)
_WARMING = "pieces ran uncompiled at some steps, since they were still compiled in the background"


class Executor:
    """A lowered graph: pieces in order, with a decision at every branch.

    Args:
        cut_graph: a graph of pieces and branches only (``passes.rewrite.pieces``).
        compiler: compiles the pieces.
        plan: decides at run time. None: the plan that holds in the generation.
        place: distinguishes the graph from equal ones at other places of the forward.
        uncut: sites without a branch, which count as computed at every step.
        in_timesteps: whether predictions extrapolate in timesteps rather than in steps. The plan of
            a generation says so itself.
        keeping: how outputs are kept for later steps.
        opener: opens the pieces, if the graph has open sizes.
        together: the ranks that run the graph together; None on one rank.

    Attributes:
        uncut: as given.
        rows: the sites without a branch, then those of every branch, for the statistics.
        identity: hash of the structure and the place. Dynamo may compile one graph several times
            (two threads at once, a dropped cache entry); such
            copies use each other's cache entries.
        sites: the sites that have a branch, in order.
        kinds: per such site, how many sites of each kind it stands for.
        half_batch: runs one half of the batch. It knows no graph until one is given.
    """

    def __init__(
        self,
        cut_graph: fx.GraphModule,
        compiler: PieceCompiler,
        plan: Plan | None,
        place: str = "",
        uncut: Sequence[Site] = (),
        in_timesteps: bool = False,
        keeping: Keeping = AS_COMPUTED,
        opener: Opener | None = None,
        together: Together | None = None,
    ) -> None:
        self._together = together
        self._keeping = keeping
        self._claimed: tuple[Plan, tuple[Claim, ...]] | None = None
        self._in_timesteps = in_timesteps
        self.uncut = uncut
        self.sites: list[Site] = []
        self.compiler = compiler
        self._plan = plan
        self._must_copy = compiler.reuses_output_memory
        self._needed: dict[tuple[bool, ...], Sequence[bool]] = {}
        self._constants = dict(cut_graph.named_buffers(recurse=False))
        self.half_batch = HalfBatch(NOT_ANALYSED, compiler)
        self._lower(cut_graph, place, Lowering(cut_graph, compiler, opener))

    def at(self, sizes: tuple[int, ...], sites: Sequence[Site], place: str) -> Executor:
        """What runs the same pieces at other sizes.

        Args:
            sizes: the open sizes.
            sites: all sites of the graph at these sizes.
            place: as for the executor, at these sizes.
        """
        named = {site.name: site for site in sites}
        other = copy.copy(self)
        other._ops = [at_sizes(op, sizes) for op in self._ops]
        other.sites = [named[site.name] for site in self.sites]
        other.uncut = [named[site.name] for site in self.uncut]
        other._claimed = None
        other.half_batch = self.half_batch.at(sizes)
        other._place = place
        other._returns = [(place, at_size(always, sizes)) for place, always in self._open_returns]
        other.identity = other._identified()
        return other

    def _identified(self) -> str:
        """The identity. Open sizes enter as numbers, as if the graph were captured at them."""
        calls = [f"{op.key} {wiring}" for op, wiring in zip(self._ops, self._wiring, strict=True)]
        return hashlib.sha256("\n".join([self._place, *calls]).encode()).hexdigest()

    def _lower(self, cut_graph: fx.GraphModule, place: str, lowering: Lowering) -> None:
        """Turn the graph into a list of ops on registers."""
        given = ir.placeholders(cut_graph.graph)
        nodes = [*given, *(node for node in cut_graph.graph.nodes if node.op != "placeholder")]
        register = {node: index for index, node in enumerate(nodes)}
        self._num_inputs, self._num_registers = len(given), len(nodes)
        self._constant_registers = [
            (register[n], self._constants[str(n.target)]) for n in nodes if n.op == "get_attr"
        ]
        returns = ir.output_node(cut_graph.graph).args[0]
        # Per output its register; or else what it always is: None, or a size.
        self._open_returns = [
            (register[r], None) if isinstance(r, fx.Node) else (None, r)
            for r in returns  # type: ignore[union-attr]
        ]
        self._returns = [(place, plain(always)) for place, always in self._open_returns]
        last_use = {source: node for node in nodes for source in node.all_input_nodes}
        kept = {*given, *ir.outputs(cut_graph.graph)}  # the caller holds them anyway
        returned = set(ir.outputs(cut_graph.graph))
        self._ops: list[Op] = []
        self._place = place
        self._wiring: list[str] = []
        num_preludes = num_watched = 0
        for node in cut_graph.graph.find_nodes(op="call_module"):
            module = cut_graph.get_submodule(str(node.target))
            assert isinstance(module, (StepBranch, Piece)), node.target
            site = prelude = watched = -1
            if isinstance(module, StepBranch):
                site = len(self.sites)
                self.sites.append(module.site)
            elif module.sort == PRELUDE:
                prelude = num_preludes
                num_preludes += 1
            elif module.sort == WATCHED:
                watched = num_watched
                num_watched += 1
            key, function = lowering.lower(node, module)
            inputs = tuple(register[n] for n in node.all_input_nodes)
            starts = starts_of(module, inputs)
            self._wiring.append(f"{list(inputs)} {starts}")
            position = {user: int(user.args[1]) for user in node.users}  # type: ignore[arg-type]
            dying = [n for n in node.all_input_nodes if last_use[n] is node and n not in kept]
            self._ops.append(
                Op(
                    key=key,
                    function=function,
                    inputs=inputs[: num_read(module)],
                    outputs=tuple((number, register[user]) for user, number in position.items()),
                    frees=tuple(register[n] for n in dying),
                    site=site,
                    prelude=prelude,
                    is_returned=any(user in returned for user in node.users),
                    starts=starts,
                    is_demanded=watched >= 0
                    or (isinstance(module, Piece) and module.sort == DEMANDED),
                    watched=watched,
                    made=made_by_python(node, register) if watched >= 0 else (),
                    exchanged=exchanged_in(module),
                    cached=tuple(
                        number
                        for user, number in position.items()
                        if not feeds_preludes_only(user, cut_graph)
                    ),
                )
            )
        self.identity = self._identified()
        self._all_ops = [True] * len(self._ops)
        singles = (single for site in self.sites for single in site.singles)
        self.kinds = [Counter(single.kind for single in site.singles) for site in self.sites]
        self.rows = tuple(Row(site.name, site.kind) for site in (*self.uncut, *singles))

    @property
    def together(self) -> Together | None:
        """The ranks that run the graph together; None on one rank."""
        return self._together

    def agree(self, inputs: Sequence[torch.Tensor], place: Place) -> Sequence[torch.Tensor]:
        """Let all ranks agree on a call that not all of them run. Returns the inputs to run on."""
        assert self._together is not None
        decisions, generation = self.decisions_of(place.generation), place.generation
        decided = decisions.at(generation.step, generation.timestep)
        reused = tuple(decision.reuses for decision in decided)
        return self._together.before(inputs, place, self.identity, decisions, reused)

    def run(
        self, inputs: Sequence[torch.Tensor], place: Place | None, is_agreed: bool = False
    ) -> tuple[torch.Tensor | None, ...]:
        """Run one step.

        Args:
            inputs: one tensor per placeholder.
            place: where this call belongs; None computes everything and caches nothing.
            is_agreed: whether the ranks agreed on it already.
        """
        with torchs_own_functions():
            return self._run(inputs, place, is_agreed)

    def _run(
        self, inputs: Sequence[torch.Tensor], place: Place | None, is_agreed: bool
    ) -> tuple[torch.Tensor | None, ...]:
        step = None if place is None else LaneStep(self, place, inputs, _device_of(inputs))
        if self._together is not None and not is_agreed:
            decisions = None if place is None else self.decisions_of(place.generation)
            reused = () if step is None else step.reused
            inputs = self._together.before(inputs, place, self.identity, decisions, reused)
        assert len(inputs) == self._num_inputs, f"{len(inputs)} inputs, not {self._num_inputs}"
        # The first registers are the inputs: a model has thousands of weights.
        registers = [*inputs, *[None] * (self._num_registers - self._num_inputs)]
        for register, tensor in self._constant_registers:
            registers[register] = tensor
        if self._must_copy:
            torch.compiler.cudagraph_mark_step_begin()
        needed = self.needed_ops(step.reused) if step is not None else self._all_ops
        if step is not None:
            step.read_ahead(
                op.site
                for op, is_needed in zip(self._ops, needed, strict=True)
                if is_needed and op.site >= 0 and step.reused[op.site]
            )
        for op, is_needed in zip(self._ops, needed, strict=True):
            results: Sequence[torch.Tensor | None] = ()
            if op.site >= 0 and step is not None:
                results = step.visit_branch(op, registers, is_needed)
            elif not is_needed:
                pass
            elif op.prelude >= 0 and step is not None:
                results = step.visit_prelude(op, registers)
            elif op.watched >= 0 and step is not None:
                results = step.visit_watched(op, registers)
            else:
                results = op.function(*[registers[i] for i in op.inputs])
                if step is not None and op.exchanged:
                    step.exchange(op)
            for position, register in op.outputs if is_needed else ():
                registers[register] = results[position]
            for register in op.frees:
                registers[register] = None
            if step is not None and is_needed:
                step.spend(op)
        if step is not None:
            step.finish()
        return tuple(always if i is None else registers[i] for i, always in self._returns)

    def needed_ops(self, reused: tuple[bool, ...]) -> Sequence[bool]:
        """Per op, whether it is needed on a step. A branch that computes is, to fill its cache.

        Args:
            reused: per site, whether the step reuses it.
        """
        if reused not in self._needed:
            registers = {register for register, _ in self._returns if register is not None}
            needed: list[bool] = []
            for op in reversed(self._ops):
                loads = op.site >= 0 and reused[op.site]
                is_needed = not (loads or op.is_demanded)
                is_needed |= any(register in registers for _, register in op.outputs)
                if is_needed:
                    registers.update(start.register for start in op.starts if start is not None)
                    registers.update(() if loads else op.inputs)
                needed.append(is_needed)
            self._needed[reused] = needed[::-1]
        return self._needed[reused]

    def decisions_of(self, generation: Generation) -> Decisions:
        """The decisions for this graph in a generation, made once."""
        if self.identity not in generation.decisions:
            schedule, plan = generation.schedule, self.plan_in(generation)
            check_together(plan, self.sites)
            generation.decisions[self.identity] = Decisions(
                plan, self.sites, schedule, generation.first_timestep
            )
            kinds = {site.kind for site in (*self.sites, *self.uncut)}
            if schedule.is_known and kinds:
                generation.record.why_nothing = why_nothing(plan, kinds, schedule)
        return generation.decisions[self.identity]

    def in_timesteps_of(self, generation: Generation) -> bool:
        """Whether predictions extrapolate in timesteps in a generation."""
        if self._plan is not None or generation.choice is None:
            return self._in_timesteps
        return generation.choice.predict_in == "timestep"

    def plan_in(self, generation: Generation) -> Plan:
        """The plan that holds at this step of a generation."""
        if self._plan is not None:
            return self._plan
        assert generation.choice is not None, "no plan holds in this generation"
        return generation.choice.plan

    def cacheable(self, tensor: torch.Tensor, is_returned: bool = False) -> torch.Tensor:
        """A tensor that outlives the step: itself, or a copy if others may write to it."""
        return copy_of(tensor) if self._must_copy or is_returned else tensor

    def kept(
        self,
        tensor: torch.Tensor,
        is_returned: bool = False,
        is_new: bool = False,
        is_narrow: bool = False,
    ) -> Held:
        """What is kept of a tensor for later steps.

        Args:
            tensor: the tensor.
            is_returned: whether Python code may write to it.
            is_new: whether nobody else has it.
            is_narrow: whether the budget asks for the narrowest dtype.
        """
        found = converted(tensor, NARROWEST if is_narrow else self._keeping.dtype)
        if found is not None:
            return found
        return tensor if is_new else self.cacheable(tensor, is_returned)

    def transfers(self, device: torch.device) -> Transfers | None:
        """What sends cached tensors to the host; None if they stay on the device."""
        return transfers_of(device) if self._keeping.offload else None

    def history_of(self, site: int, generation: Generation) -> int:
        """Number of outputs to cache of a site if the later steps are unknown."""
        plan = self.plan_in(generation)
        return plan.max_order(self.sites[site]) + 1 if plan.may_reuse(self.sites[site]) else 0

    def cached_sites(self, generation: Generation, device: torch.device) -> frozenset[int] | None:
        """The positions of the sites that are cached; None if there is no budget."""
        budget = self._keeping.budget
        if budget is None:
            return None
        if generation.allowance.limit is None:
            if not self._keeping.is_given and free_bytes(device) is None:
                return None
            generation.allowance.begin(in_bytes(budget, device), self._keeping.narrows)
            self._tell(generation.allowance.limit or 0, device)
        claims = self._claims_under(self.plan_in(generation))
        found = generation.allowance.sites_of(
            self.identity, claims, generation.lanes, self.transfers(device)
        )
        is_short = len(found) < len(claims) or generation.allowance.is_narrow
        if is_short and generation.step > 0:  # by then all lanes are known
            generation.note(generation.allowance.note(self.transfers(device) is not None))
        return found

    def _tell(self, limit: int, device: torch.device) -> None:
        """Say in the log, once per program, how much memory the caches have by default."""
        if self._claimed is None and not self._keeping.is_given:
            share = f"{DEFAULT_BUDGET:.0%} of what is free on {device}"
            words = "the caches of a generation take at most %.2f GiB, %s; cache_budget changes it"
            _log.info(words, limit / 2**30, share)

    def is_limited(self, cached: frozenset[int] | None) -> bool:
        """Whether nothing may be cached besides what the budget counts.

        Args:
            cached: the positions of the sites that are cached; None if there is no budget.
        """
        return cached is not None and (self._keeping.is_given or len(cached) < len(self.sites))

    def _claims_under(self, plan: Plan) -> tuple[Claim, ...]:
        last = self._claimed
        if last is None or last[0] != plan:
            self._claimed = last = plan, claims_of(self.sites, plan, self._keeping.dtype)
        return last[1]

    def report(self, generation: Generation) -> None:
        """Tell a generation's statistics what was compiled for it so far."""
        compiled = (self.compiler.num_pieces, self.compiler.compile_seconds)
        generation.record.compilers[id(self.compiler)] = compiled
        if self.compiler.num_waiting:
            generation.note(_WARMING)


def _device_of(tensors: Sequence[torch.Tensor]) -> torch.device:
    return next((tensor.device for tensor in tensors), torch.device("cpu"))
