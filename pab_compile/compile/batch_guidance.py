"""Guidance in one call: computes one half of the batch and answers the other half from it.

A step with both prompts in the batch has the same latents in both halves. The program at half the
batch computes the rows of one prompt (``half_batch``). See ``guidance`` for the differences.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from pab_compile.plans.guidance import FIRST
from pab_compile.plans.step_plan import StepPlan
from pab_compile.runtime.cache_entry import Tensors
from pab_compile.runtime.generation import Place

from .guidance import LIMITED, WHERE, Differences
from .half_batch import HalfBatch

if TYPE_CHECKING:
    from .executor import Executor

_CALLS = (
    WHERE + "the plan leaves out half of a batch with both prompts, and a step makes {} calls. "
    "Tune the plan for two calls per step"
)
_UNALIKE = (
    WHERE + "the plan leaves out half of a batch with both prompts, and the two halves of this one "
    "are not the same latents with two prompts. With guidance that is distilled into the model "
    "there is nothing to leave out"
)


class BatchGuidance:
    """The guidance of a call with both prompts in the batch.

    Args:
        executor: runs the graph.
        place: where the call belongs.
        plan: says where guidance is left out.
        inputs: of the graph.
        is_limited: whether the memory for the cache is limited.
    """

    is_half = True

    def __init__(
        self,
        executor: Executor,
        place: Place,
        plan: StepPlan,
        inputs: Sequence[torch.Tensor],
        is_limited: bool,
    ) -> None:
        assert plan.guidance is not None
        self._half: HalfBatch = executor.half_batch
        self._which = 0 if plan.guidance.computes == FIRST else 1
        self._inputs = inputs
        self._graph = executor.identity
        self._generation, self._lane = place.generation, place.lane
        self._weights = plan.guidance_at(place.generation.step, place.generation.schedule)
        self._differences = Differences(place.lane, self._graph, place, plan)
        self._is_limited = is_limited

    def answers(self, site: int) -> bool:
        """Whether the plan leaves out half of this call, and it can be answered."""
        if self._weights is None or not self._is_pair:
            return False
        if self._lane.is_repeated or not self._differences.are_kept(site):
            self._differences.note_missing()
            return False
        return self._generation.may_reuse_from(self._lane, self._differences.sources[0])

    def answer(self, site: int) -> Tensors:
        """The outputs of the whole batch, of which one half is computed."""
        assert self._weights is not None
        computed = self._half.run(self._which, self._inputs)
        kept = self._differences.newest(site)
        others = self._differences.answer(site, computed, self._weights)
        return tuple(map(self._joined, computed, others, kept))

    def learn(self, site: int) -> None:
        """Keep the difference of a step that computed the whole batch."""
        if self._lane.is_repeated or not self._differences.are_wanted() or not self._is_pair:
            return
        entry = self._lane.cache.get((self._graph, site))
        if entry is not None and entry.last_step == self._generation.step:
            (whole,) = entry.newest(1)
            parts = [tuple(tensor.chunk(2)[i] for tensor in whole) for i in (0, 1)]
            self._differences.keep(site, parts[self._which], parts[1 - self._which])

    def _joined(
        self, computed: torch.Tensor, other: torch.Tensor, kept: torch.Tensor
    ) -> torch.Tensor:
        """The whole batch, with the strides that it has at other steps."""
        rows = len(computed)
        shape, strides = (2 * rows, *computed.shape[1:]), kept.stride()
        whole = torch.empty_strided(shape, strides, dtype=other.dtype, device=other.device)
        parts = whole[:rows], whole[rows:]
        parts[self._which].copy_(computed)
        parts[1 - self._which].copy_(other)
        return whole

    @functools.cached_property
    def _is_pair(self) -> bool:
        """Whether both halves of the batch are certainly one video with two prompts."""
        why = self._why_no_pair()
        if why:
            self._generation.note(why)
        return not why

    def _why_no_pair(self) -> str:
        if len(self._generation.lanes) != 1:
            return _CALLS.format(len(self._generation.lanes))
        if self._is_limited:
            return LIMITED
        if not self._have_halves():
            return _UNALIKE
        return self._half.why_not(self._which)

    def _have_halves(self) -> bool:
        """Whether the latents of both halves are the same, and their prompts are not."""
        latents = self._lane.latents.tensor
        if latents.ndim < 2 or len(latents) % 2:
            return False
        one, other = latents.chunk(2)
        is_repeated = (one[1:] == one[:1]).flatten(1).all(1).any()  # then there are more prompts
        if not torch.equal(one, other) or bool(is_repeated):
            return False
        return self._lane.has_two_prompts(len(latents))
