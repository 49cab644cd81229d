"""Halves: each of two ranks computes one of the two calls that guidance makes at every step.

The pipeline makes both calls on every rank, one after the other::

    step 0:  both ranks compute both calls, and learn them
    step 1:  first call: rank 0 computes it, and rank 1 computes the second one meanwhile, on the
             prompts of step 0; then they exchange their outputs. Second call: it is answered.

Both calls of a step have the same latents and timestep, so the second one is known before it is
made. Once it is made, its inputs are compared with those that it was computed on. Each rank has the
caches of its own call only. If ranks share tokens too, all of this holds for each pair of ranks
that have the same tokens.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from pab_compile.errors import ShardingError
from pab_compile.passes.parallel.shard import Ranks
from pab_compile.report.exchanges import Exchanged
from pab_compile.runtime.generation import Generation
from pab_compile.runtime.identity import Identity
from pab_compile.runtime.lane import Lane

from .sends import sent_beside

Tensors = Sequence[torch.Tensor]
Outputs = Sequence[Any]
_ADVICE = "Leave batch_mesh and batch_parallel out, and let the ranks share the tokens."


@dataclass(frozen=True, eq=False)
class Turn:
    """A call of the model that two ranks share.

    Attributes:
        generation: to which it belongs.
        lane: to which it belongs.
        program: identifies the program that runs it.
        inputs: of the program.
        prompts: positions of the inputs that each of the two calls has of its own.
        given: positions of all inputs that the caller gives, with their names.
        run: runs the program in a lane on inputs.
        empty: tensors like those that the program returns.
        sends: is told what this rank sends.
    """

    generation: Generation
    lane: Lane
    program: str
    inputs: Tensors
    prompts: frozenset[int]
    given: Mapping[int, str]
    run: Callable[[Lane, Tensors], Outputs]
    empty: Callable[[], Outputs]
    sends: Callable[[Exchanged], None]

    def shared(self) -> dict[int, Identity]:
        """The inputs that both calls of a step must have in common."""
        return {n: Identity.of(self.inputs[n]) for n in self.given if n not in self.prompts}


@dataclass(frozen=True, eq=False)
class _Known:
    """What is known of one of the two calls.

    Attributes:
        prompts: the inputs that it has of its own, by position.
        shapes: of all inputs that the caller gives.
    """

    prompts: Mapping[int, torch.Tensor]
    shapes: Mapping[int, torch.Size]

    @staticmethod
    def of(turn: Turn) -> _Known:
        """What a call shows."""
        shapes = {n: turn.inputs[n].shape for n in turn.given}
        return _Known({n: turn.inputs[n] for n in turn.prompts}, shapes)


@dataclass(eq=False)
class _Pair:
    """The two calls of a generation. It must not hold the generation.

    Attributes:
        first_step: the step at which they are learned.
        calls: lane -> what is known of its last call, in the order of the calls.
        shared: the inputs that the calls of a step have in common.
        unlike: what distinguishes the calls besides their prompts.
        is_checked: whether there are two calls of one shape.
        step: the last step that was shared.
        ahead: lane -> its outputs at that step, until it is called.
    """

    first_step: int
    calls: dict[Lane, _Known] = field(default_factory=dict)
    shared: dict[int, Identity] = field(default_factory=dict)
    unlike: str = ""
    is_checked: bool = False
    step: int = -1
    ahead: dict[Lane, Outputs] = field(default_factory=dict)


class Halves:
    """Two ranks that share the calls of a step.

    Args:
        ranks: the two, and which of them this one is.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._pairs: weakref.WeakKeyDictionary[Generation, _Pair] = weakref.WeakKeyDictionary()

    def outputs(self, turn: Turn) -> Outputs:
        """The outputs of a call, computed here or received.

        Raises:
            ShardingError: a step does not make two calls of one shape on the same latents.
        """
        generation = turn.generation
        pair = self._pairs.setdefault(generation, _Pair(generation.step))
        if generation.step == pair.first_step:
            _learn(pair, turn)
            return turn.run(turn.lane, turn.inputs)
        self._check(pair, turn)
        generation.keeps_lanes = True  # both ranks close a lane when it is answered
        try:
            found = self._answer(pair, turn)
        finally:
            generation.keeps_lanes = False
        if generation.seems_done:
            generation.lanes.close(turn.lane, turn.program)
        return found

    def _check(self, pair: _Pair, turn: Turn) -> None:
        """Check once that the first step made two calls that can be shared."""
        if not pair.is_checked:
            calls = list(pair.calls.values())
            why = pair.unlike
            if len(calls) != 2:
                why = f"a step makes {len(calls)} call{'s' * (len(calls) != 1)}"
            elif calls[0].shapes != calls[1].shapes:
                why = "the two calls of a step have inputs of other shapes"
            if why:
                raise ShardingError(_refusal(why))
            pair.is_checked = True
            mine = self._own(pair)
            for lane in pair.calls:  # this rank never runs it again
                if lane is not mine:
                    lane.free()
        known = pair.calls.get(turn.lane)
        if known is None or _Known.of(turn).shapes != known.shapes:
            raise ShardingError(
                _refusal("the prompts, the size or the number of calls changed in a generation")
            )

    def _own(self, pair: _Pair) -> Lane:
        return list(pair.calls)[self._ranks.rank]

    def _answer(self, pair: _Pair, turn: Turn) -> Outputs:
        lane, step = turn.lane, turn.generation.step
        is_first = pair.step != step
        if is_first:
            pair.step, pair.ahead, pair.shared = step, {}, turn.shared()
        pair.calls[lane] = _Known.of(turn)
        if lane in pair.ahead:
            if why := _difference(pair.shared, turn):
                raise ShardingError(_refusal(why))
            return pair.ahead.pop(lane)
        if is_first and lane.first_reusable_step < step:
            pair.ahead = self._both(pair, turn)
            return pair.ahead.pop(lane)
        return self._sent(turn, list(pair.calls).index(lane))

    def _both(self, pair: _Pair, turn: Turn) -> dict[Lane, Outputs]:
        """Compute this rank's call, and exchange the outputs."""
        mine = self._own(pair)
        own = pair.calls[mine].prompts
        inputs = [own[n] if n in turn.prompts else x for n, x in enumerate(turn.inputs)]
        found = turn.run(mine, inputs)
        every = [self._gathered(output) for output in found]
        self._tell(turn, "all-gather", found, self._ranks.size - 1)
        return {lane: [each[n] for each in every] for n, lane in enumerate(pair.calls)}

    def _gathered(self, output: Any) -> Sequence[Any]:
        """An output of both calls."""
        if not isinstance(output, torch.Tensor):
            return [output, output]
        mine = output.contiguous()
        every = [torch.empty_like(mine) for _ in range(self._ranks.size)]
        dist.all_gather(every, mine, group=self._group)
        every[self._ranks.rank] = output
        return every

    def _sent(self, turn: Turn, owner: int) -> Outputs:
        """The outputs of a call that could not be foreseen: its rank computes and sends them."""
        is_mine = owner == self._ranks.rank
        found = turn.run(turn.lane, turn.inputs) if is_mine else turn.empty()
        sent = [x.contiguous() if isinstance(x, torch.Tensor) else x for x in found]
        for tensor in sent:
            if isinstance(tensor, torch.Tensor):
                dist.broadcast(tensor, group=self._group, group_src=owner)
        self._tell(turn, "broadcast", sent, (self._ranks.size - 1) * is_mine)
        return found if is_mine else sent

    def _tell(self, turn: Turn, how: str, outputs: Outputs, receivers: int) -> None:
        """Note what was exchanged, for the statistics."""
        tensors = [output for output in outputs if isinstance(output, torch.Tensor)]
        turn.sends(sent_beside("outputs of the calls", how, tensors, receivers, "calls"))

    @property
    def _group(self) -> dist.ProcessGroup:
        """The process group of the two, which may be made anew under its name."""
        name: Any = self._ranks.group
        return dist.distributed_c10d._resolve_process_group(name)


def _learn(pair: _Pair, turn: Turn) -> None:
    """Note a call of the first step."""
    if not pair.calls:
        pair.shared = turn.shared()
    elif _Known.of(turn).shapes == next(iter(pair.calls.values())).shapes:
        pair.unlike = pair.unlike or _difference(pair.shared, turn)
    pair.calls[turn.lane] = _Known.of(turn)


def _difference(shared: Mapping[int, Identity], turn: Turn) -> str:
    """What distinguishes the calls of a step besides their prompts; ``""`` if nothing does."""
    for number, identity in shared.items():
        if not identity.is_same(turn.inputs[number]):
            return f"the two calls of a step have another {turn.given[number]!r}"
    return ""


def _refusal(why: str) -> str:
    return (
        "batch_mesh and batch_parallel give each half of the ranks one of the two calls of "
        f"guidance, since a call has one row of the batch. But {why}. {_ADVICE}"
    )
