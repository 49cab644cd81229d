"""Tracker: finds the generation, step and lane of every call."""

from __future__ import annotations

from dataclasses import replace

from pab_compile.plans.schedule import Schedule

from .clock import TimestepTable
from .continuation import is_over, step_of
from .generation import Generation
from .lane import Call, Lane
from .levels import Levels

_MAX_RUNNING = 4

_INTERLEAVED = (
    "one function makes two generations with the same timesteps and prompts, or broke one off and "
    "started again, so none of their outputs were reused: wrap each in pab_compile.generation()"
)
_ALIKE = (
    "calls of one step have the same prompts and other latents, so it is unknown which of them "
    "belong together, and nothing was reused: name them with pab_compile.step(..., lane=...), or "
    "wrap each video in pab_compile.generation()"
)
_NO_SCHEDULE = (
    "no schedule was found that contains the timesteps, so nothing was reused: give "
    "pab_compile.generation(timesteps=...)"
)
_HIDDEN = (
    "two calls of one step have the same inputs, and Python code between the graphs of the model "
    "may add conditions that distinguish them, so nothing was reused: name the calls with "
    "pab_compile.step(..., lane=...)"
)


class Tracker:
    """The running generations of a model, within one scope.

    Args:
        schedule: timesteps that the user gave for the scope, or None.
        is_one: whether the user said that the scope is one generation.

    Attributes:
        generation: the one of the last call.
        prompt_inputs: names of the per-prompt inputs that some graph of the model reads.
        levels: what is known of timesteps whose elements differ.
        fixed_inputs: those of them that cannot change at every step, since they may be prompts.
    """

    def __init__(self, schedule: Schedule | None = None, is_one: bool = False) -> None:
        self._given = schedule
        self._is_one = is_one
        self._running: list[Generation] = []
        self.generation: Generation | None = None
        self.prompt_inputs: dict[str, None] = {}
        self.levels = Levels()
        self.fixed_inputs: set[str] = set()

    @property
    def tables(self) -> list[TimestepTable]:
        """The scheduler's tables of the running generations."""
        return [running.table for running in self._running if running.table is not None]

    def place(self, call: Call) -> tuple[Generation, Lane]:
        """Find the generation and the lane of a call, and move the generation to the call's step.

        Returns:
            The generation and the lane, which may be new.
        """
        generation = self._of_callers(call)
        if generation is None or not self._goes_on(generation, call):
            generation = self._begin(call, generation)
        self.generation = generation
        lane = generation.find_lane(call)
        if lane is not None and lane.step == generation.step:
            if call.lane is None and lane.is_beside(call):
                generation.lanes.by_place = True
                lane = None
            elif not lane.latents.is_same_memory(call.latents):
                if generation.may_loop_in(call.callers):
                    generation.distrust(_ALIKE)
                else:
                    self.generation = generation = self._begin(call, generation)
                lane = None
            elif call.lane is None:
                if call.is_hidden:
                    generation.distrust(_HIDDEN)
                lane = None
        if lane is None:
            lane = generation.open_lane(call)
        generation.enter(lane, call)
        return generation, lane

    def drop(self) -> None:
        """Close the running generations and free their caches."""
        for running in self._running:
            running.free()
        self._running.clear()

    def _of_callers(self, call: Call) -> Generation | None:
        """The generation of the innermost function that loops over the steps of one.

        If the user states the step, other functions may continue a generation too.
        """
        running = [other for other in reversed(self._running) if not other.closed]
        depths = [(other.depth_in(call.callers), other) for other in running]
        found = [(depth, other) for depth, other in depths if depth is not None]
        if found:
            return min(found, key=lambda each: each[0])[1]
        over = [other for other in running if not other.may_wait(call.callers)]
        return over[0] if over and call.index is not None else None

    def _goes_on(self, generation: Generation, call: Call) -> bool:
        """Whether a call continues a generation, which then moves to the call's step."""
        found = step_of(generation, call)
        if found is None:
            return False
        if found.index == generation.step == 0 and call.index is None:
            return generation.is_of(call.callers)  # else another sampler may begin as this one did
        if found.index != generation.step:
            if generation.is_left(call.callers):
                return False
            if found.stride > 1:
                generation.take_every(found.stride)
            if found.is_between:
                generation.take_between()
            if not found.is_shown and generation.trusted:
                generation.distrust(_NO_SCHEDULE)
            generation.advance(found.index, call)
        return True

    def _begin(self, call: Call, before: Generation | None) -> Generation:
        """Begin a generation.

        Args:
            call: its first call.
            before: the generation of the same functions.
        """
        suspicious = before is not None and self._may_interleave(before, call)
        waiting = [other for other in self._running if other.may_wait(call.callers)]
        kept = waiting[1 - _MAX_RUNNING :]
        for other in self._running:
            if other not in kept:
                other.free()
        stated_steps = call.schedule.num_steps if call.schedule is not None else None
        is_given = self._given is not None and stated_steps in (None, self._given.num_steps)
        if is_given:
            call = replace(call, schedule=self._given)
        begun = Generation(call, not suspicious, is_stated=is_given, is_one=self._is_one)
        self._running = [*kept, begun]
        if suspicious:
            begun.note(_INTERLEAVED)
        return begun

    def _may_interleave(self, before: Generation, call: Call) -> bool:
        """Whether a new generation may run at the same time as an unfinished one."""
        if before.closed or is_over(before) or not before.may_loop_in(call.callers):
            return False
        if before.is_left(call.callers):
            return False
        if (call.reading.index or 0) > 0:
            return True
        same_table = call.reading.table is before.table
        return same_table and before.find_lane(call) is not None
