"""Guidance: answers an unconditional call from its step's conditional one.

See ``plans.guidance`` for the arithmetic. Only a pair of calls that is certain is answered: a step
makes exactly two, with different prompts and latents of one layout, and the conditional one came
first and computed. In doubt the call computes, and the statistics say why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pab_compile.plans.plan import MAX_ORDER
from pab_compile.plans.step_plan import StepPlan
from pab_compile.runtime.cache_entry import CacheEntry, Tensors, minus
from pab_compile.runtime.generation import Place
from pab_compile.runtime.lane import Lane

if TYPE_CHECKING:
    from .executor import Executor

_WHERE = "guidance was computed at all steps: "
_ONE_CALL = (
    _WHERE + "the plan leaves out the second call of a step, and a step makes one, as with both "
    "prompts in one batch, or with guidance that is distilled into the model"
)
_MANY_CALLS = _WHERE + "the plan leaves out the second of two calls of a step, and a step makes {}"
_LIMITED = _WHERE + "guidance differences are not kept with a budget for the cache"
_UNALIKE = _WHERE + "the two calls of a step are not of one video with two prompts"
_ORDER = (
    "guidance was computed at some steps: the unconditional call came first there, and it can only "
    "be answered after the conditional one. Call the model with the prompt first"
)
_MISSING = (
    "guidance was computed at some steps: the outputs of the steps that the plan combines there "
    "were not all cached"
)


class Guidance:
    """The guidance of one call of a step.

    Args:
        executor: runs the graph.
        place: where the call belongs.
        plan: says where guidance is left out.
        is_limited: whether the memory for the cache is limited.
    """

    def __init__(self, executor: Executor, place: Place, plan: StepPlan, is_limited: bool) -> None:
        assert plan.guidance is not None
        self._plan, self._guidance = plan, plan.guidance
        self._graph = executor.identity
        self._generation, self._lane = place.generation, place.lane
        self._weights = plan.guidance_at(place.generation.step, place.generation.schedule)
        self._conditional = self._find_conditional(is_limited)

    @staticmethod
    def of(executor: Executor, place: Place, is_limited: bool) -> Guidance | None:
        """The guidance of a call; None if the plan computes it at every step."""
        generation = place.generation
        plan = executor.plan_in(generation)
        if not isinstance(plan, StepPlan) or plan.guidance is None or not generation.trusted:
            return None
        is_unfit = generation.schedule.num_steps is None or plan.misfit(generation.schedule)
        return None if is_unfit else Guidance(executor, place, plan, is_limited)

    def answer(self, site: int) -> Tensors | None:
        """The output of an unconditional call that the plan leaves out; None if it must compute."""
        if self._weights is None or self._conditional is None:
            return None
        generation, step = self._generation, self._generation.step
        given = self._conditional.cache.get((self._graph, site))
        kept = self._lane.cache.get((self._graph, _differences_of(site)))
        sources = self._guidance.sources(step, self._plan.entries)
        if self._conditional.step != step:
            generation.note(_ORDER)
            return None
        is_repeated = self._lane.is_repeated or self._conditional.is_repeated
        has_all = kept is not None and kept.steps[-len(sources) :] == sources
        if is_repeated or not has_all or given is None or given.last_step != step:
            generation.note(_MISSING)
            return None
        both = (self._lane, self._conditional)
        if not all(generation.may_reuse_from(lane, sources[0]) for lane in both):
            return None
        assert kept is not None
        (outputs,) = given.newest(1)
        answer = minus(outputs, kept.combined(self._weights))
        if step == self._guidance.steps[-1]:
            del self._lane.cache[self._graph, _differences_of(site)]
        return answer

    def learn(self, site: int, outputs: Tensors) -> None:
        """Keep the difference of a step of which both calls computed.

        Args:
            site: the site.
            outputs: what this call computed.
        """
        step = self._generation.step
        later = [other for other in self._guidance.steps if other > step]
        is_other = self._conditional is None or self._conditional.step != step
        if self._weights is not None or not later or is_other or self._lane.is_repeated:
            return
        assert self._conditional is not None
        given = self._conditional.cache.get((self._graph, site))
        if given is not None and given.last_step == step:
            (conditional,) = given.newest(1)
            key = (self._graph, _differences_of(site))
            kept = self._lane.cache.setdefault(key, CacheEntry())
            kept.store(step, minus(conditional, outputs), MAX_ORDER + 1)

    def _find_conditional(self, is_limited: bool) -> Lane | None:
        """The conditional lane, if this lane is certainly the unconditional one."""
        generation, lanes = self._generation, list(self._generation.lanes)
        if len(lanes) != 2:
            if self._weights is not None:
                text = _ONE_CALL if len(lanes) == 1 else _MANY_CALLS.format(len(lanes))
                generation.note(text)
            return None
        conditional = lanes[0 if self._guidance.conditional == "first" else 1]
        if conditional is self._lane:
            return None
        if is_limited:
            generation.note(_LIMITED)
            return None
        if conditional.place[1:] != self._lane.place[1:] or not self._have_two_prompts(conditional):
            generation.note(_UNALIKE)
            return None
        return conditional

    def _have_two_prompts(self, conditional: Lane) -> bool:
        """Whether both lanes carry different prompts. They are compared once."""
        if self._lane.differs_from is not conditional and not self._lane.agrees(conditional):
            self._lane.differs_from = conditional
        return self._lane.differs_from is conditional


def _differences_of(site: int) -> int:
    """The place of a site's differences in the cache of a lane."""
    return -1 - site
