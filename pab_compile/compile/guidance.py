"""Guidance: answers one of a step's two prompts from the other one.

See ``plans.guidance`` for the arithmetic. Only a pair that is certain is answered: a step has
exactly two prompts, and both have the same latents. In doubt both are computed, and the statistics
say why. This module is for two calls per step; ``batch_guidance`` is for one call with both.

Differences are of what is kept of a site, so each site of a call is answered by itself.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from pab_compile.passes.sites.site import OUTPUT
from pab_compile.plans.guidance import GuidancePlan
from pab_compile.plans.plan import MAX_ORDER, Weights
from pab_compile.plans.step_plan import StepPlan
from pab_compile.runtime.cache_entry import CacheEntry, Tensors, combine, minus
from pab_compile.runtime.generation import Place
from pab_compile.runtime.lane import Lane

if TYPE_CHECKING:
    from .executor import Executor

WHERE = "guidance was computed at all steps: "
_ONE_CALL = (
    WHERE + "the plan leaves out the second call of a step, and a step makes one. Tune the plan "
    "for both prompts in one call; with guidance that is distilled into the model there is nothing "
    "to leave out"
)
_MANY_CALLS = WHERE + "the plan leaves out the second of two calls of a step, and a step makes {}"
LIMITED = WHERE + "guidance differences are not kept with a budget for the cache"
_UNALIKE = WHERE + "the two calls of a step are not of one video with two prompts"
_ORDER = (
    "guidance was computed at some steps: the call that the plan leaves out came first there, and "
    "it can only be answered after the other one. Call the model in the same order at every step"
)
_MISSING = (
    "guidance was computed at some steps: the outputs of the steps that the plan combines there "
    "were not all cached"
)


class Differences:
    """The kept guidance differences of one lane.

    Args:
        lane: the lane that is answered.
        graph: identity of the graph.
        place: where the call belongs.
        plan: says which differences a step combines.
    """

    def __init__(self, lane: Lane, graph: str, place: Place, plan: StepPlan) -> None:
        assert plan.guidance is not None
        self._lane, self._graph = lane, graph
        self._generation, self._step = place.generation, place.generation.step
        self._guidance: GuidancePlan = plan.guidance
        self._entries = plan.entries

    @property
    def sources(self) -> tuple[int, ...]:
        """The steps whose differences this step combines."""
        return self._guidance.sources(self._step, self._entries)

    def are_kept(self, site: int) -> bool:
        """Whether all of them are kept."""
        kept, sources = self._lane.cache.get(self._key(site)), self.sources
        return kept is not None and kept.steps[-len(sources) :] == sources

    def note_missing(self) -> None:
        """Note that what the plan combines is not all there."""
        self._generation.note(_MISSING)

    def newest(self, site: int) -> Tensors:
        """The newest one that is kept."""
        (newest,) = self._lane.cache[self._key(site)].newest(1)
        return newest

    def answer(self, site: int, computed: Tensors, weights: Weights) -> Tensors:
        """What was computed minus the weighted sum of the differences, rounded once."""
        kept = self._lane.cache[self._key(site)].newest(len(weights))
        if self._step == self._guidance.steps[-1]:
            del self._lane.cache[self._key(site)]
        return combine([*kept, computed], [*(-weight for weight in weights), 1.0])

    def are_wanted(self) -> bool:
        """Whether a later step combines the difference of this one."""
        is_left_out = self._guidance.weights[self._step] is not None
        return not is_left_out and any(step > self._step for step in self._guidance.steps)

    def keep(self, site: int, computed: Tensors, other: Tensors) -> None:
        """Keep the difference of this step."""
        kept = self._lane.cache.setdefault(self._key(site), CacheEntry())
        kept.drop_from(self._step)
        kept.store(self._step, minus(computed, other), MAX_ORDER + 1)

    def _key(self, site: int) -> tuple[str, int]:
        """The place of a site's differences in the cache of a lane."""
        return self._graph, -1 - site


class CallGuidance:
    """The guidance of one call of a step that makes two.

    Args:
        executor: runs the graph.
        place: where the call belongs.
        plan: says where guidance is left out.
        is_limited: whether the memory for the cache is limited.
    """

    is_half = False

    def __init__(self, executor: Executor, place: Place, plan: StepPlan, is_limited: bool) -> None:
        self._graph = executor.identity
        self._generation, self._lane = place.generation, place.lane
        self._weights = plan.guidance_at(place.generation.step, place.generation.schedule)
        self._differences = Differences(place.lane, self._graph, place, plan)
        self._is_limited, self._is_whole = is_limited, plan.cut == OUTPUT

    def answers(self, site: int) -> bool:
        """Whether the plan leaves out this call, and it can be answered."""
        if self._weights is None or self._first is None:
            return False
        generation, step = self._generation, self._generation.step
        given = self._entry(self._first, site)
        if self._first.step != step:
            generation.note(_ORDER)
            return False
        is_repeated = self._lane.is_repeated or self._first.is_repeated
        has_all = self._differences.are_kept(site)
        if is_repeated or not has_all or given is None or given.last_step != step:
            self._differences.note_missing()
            return False
        both, oldest = (self._lane, self._first), self._differences.sources[0]
        return all(generation.may_reuse_from(lane, oldest) for lane in both)

    def answer(self, site: int) -> Tensors:
        """What this call would keep of a site."""
        assert self._weights is not None
        return self._differences.answer(site, self._computed(self._first, site), self._weights)

    def learn(self, site: int) -> None:
        """Keep the difference of a step of which both calls computed."""
        first, step = self._first, self._generation.step
        if first is None or not self._differences.are_wanted() or self._lane.is_repeated:
            return
        entries = [self._entry(lane, site) for lane in (first, self._lane)]
        if all(entry is not None and entry.last_step == step for entry in entries):
            computed, other = (self._computed(lane, site) for lane in (first, self._lane))
            self._differences.keep(site, computed, other)

    def _computed(self, lane: Lane | None, site: int) -> Tensors:
        entry = None if lane is None else self._entry(lane, site)
        assert entry is not None
        (newest,) = entry.newest(1)
        return newest

    def _entry(self, lane: Lane, site: int) -> CacheEntry | None:
        """What a lane cached of a site. Whole outputs may be of the graph for another prompt."""
        found = lane.cache.get((self._graph, site))
        if found is not None or not self._is_whole:
            return found
        others = [entry for (_, number), entry in lane.cache.items() if number == site]
        return others[0] if len(others) == 1 else None

    @functools.cached_property
    def _first(self) -> Lane | None:
        """The lane of the first call, if this one is certainly the second of two."""
        generation, lanes = self._generation, list(self._generation.lanes)
        if len(lanes) != 2:
            if self._weights is not None:
                text = _ONE_CALL if len(lanes) == 1 else _MANY_CALLS.format(len(lanes))
                generation.note(text)
            return None
        first = lanes[0]
        if first is self._lane:
            return None
        if self._is_limited:
            generation.note(LIMITED)
            return None
        if first.step == generation.step and not self._are_of_one_video(first):
            generation.note(_UNALIKE)
            return None
        return first

    def _are_of_one_video(self, first: Lane) -> bool:
        """Whether both calls of this step have the same latents and different prompts."""
        is_alike = first.place[1:] == self._lane.place[1:] and self._have_two_prompts(first)
        return is_alike and first.latents.is_same(self._lane.latents.tensor)

    def _have_two_prompts(self, first: Lane) -> bool:
        """Whether both lanes carry different prompts. They are compared once."""
        if self._lane.differs_from is not first and not self._lane.agrees(first):
            self._lane.differs_from = first
        return self._lane.differs_from is first
