"""Tracker: finds the generation, step and lane of every call."""

from __future__ import annotations

from dataclasses import replace

from pab_compile.plans.schedule import Schedule

from .clock import TimestepTable
from .generation import Generation
from .identity import Identity
from .lane import Call, Lane
from .recall import KnownSchedules, going_on

_INTERLEAVED = (
    "two generations with the same timesteps and prompts run at once, or one was interrupted and "
    "started again, so none of their outputs were reused: wrap each in pab_compile.generation(), "
    "or call pab_compile.reset() after an interruption"
)
_OTHER_TIMESTEPS = (
    "the timesteps start like those of an earlier generation and then differ, so from then on "
    "nothing was reused: the number of steps may be another, or two generations may run at once; "
    "give pab_compile.generation(timesteps=...); the next generation with these timesteps reuses"
)
_HIDDEN = (
    "two calls of one step have the same inputs, and Python code between the graphs of the model "
    "may add conditions that distinguish them, so nothing was reused: name the calls with "
    "pab_compile.step(..., lane=...)"
)
_MIXED = "the rows of the batch are at different timesteps, so this step was computed"


class Tracker:
    """The running generation of a model, within one scope.

    Args:
        schedule: timesteps that the user gave for the scope, or None.

    Attributes:
        generation: the running one, or the last one.
        prompt_inputs: names of the per-prompt inputs that some graph of the model reads.
        fixed_inputs: those of them that cannot change at every step, since they may be prompts.
    """

    def __init__(self, schedule: Schedule | None = None) -> None:
        self._given = schedule
        self._known = KnownSchedules()
        self.generation: Generation | None = None
        self.prompt_inputs: dict[str, None] = {}
        self.fixed_inputs: set[str] = set()

    @property
    def table(self) -> TimestepTable | None:
        """The scheduler's table of the running generation."""
        return self.generation.table if self.generation else None

    def place(self, call: Call) -> tuple[Generation, Lane] | None:
        """Find the generation and the lane of a call, and move the generation to the call's step.

        Returns:
            The generation and the lane, which may be new. None for a call with batch rows at
            different timesteps: it computes.
        """
        if call.reading.value is None and call.index is None:
            if self.generation is not None:
                self.generation.note(_MIXED)
            return None
        generation = self.generation
        if generation is None or generation.closed:
            generation = self._begin(call)
        else:
            generation = self._follow(generation, call)
        lane = generation.find_lane(call)
        if lane is not None and lane.step == generation.step:
            if not lane.latents.is_same_memory(call.latents):
                # The same step, prompts and lane, but other latents: another generation.
                generation = self._begin(call, suspicious=True)
                lane = None
            elif call.lane is None:
                if call.is_hidden:
                    generation.trusted = False
                    generation.note(_HIDDEN)
                lane = None
        if lane is None:
            lane = generation.open_lane(call)
        lane.step = generation.step
        lane.latents = Identity.of(call.latents, remember=False)
        return generation, lane

    def drop(self) -> None:
        """Close the running generation and free its cache."""
        if self.generation is not None:
            self.generation.free()

    def _follow(self, generation: Generation, call: Call) -> Generation:
        """The generation of a call while one is running: that one, or a new one."""
        step = self._next_step(generation, call)
        if step is not None and step == generation.step:
            return generation
        if step is not None and step == generation.step + 1:
            self._check_recalled(generation, call, step)
            generation.advance(step, call.reading)
            return generation
        return self._begin(call, suspicious=self._may_be_interleaved(generation, call))

    def _next_step(self, generation: Generation, call: Call) -> int | None:
        """The step of a call in the running generation; None if it does not continue it."""
        if call.index is not None:
            return call.index
        value, index = call.reading.value, call.reading.index
        if generation.table is not None or call.reading.table is not None:
            if index is None or generation.table is not call.reading.table:
                return None
            return index - generation.origin
        if value is None or generation.timestep is None:
            return None
        if value == generation.timestep:
            return (
                generation.step + 1 if self._repeats_timestep(generation, call) else generation.step
            )
        if len(set(generation.seen)) < 2:
            return generation.step + 1
        falling = generation.seen[0] > generation.timestep
        onwards = value < generation.timestep if falling else value > generation.timestep
        return generation.step + 1 if onwards else None

    def _repeats_timestep(self, generation: Generation, call: Call) -> bool:
        """Whether the scheduler repeats a timestep (PNDM, Heun): same lane, other latents."""
        if generation.step == 0:
            return False
        lane = generation.find_lane(call)
        return (
            lane is not None
            and lane.step == generation.step
            and not lane.latents.is_same_memory(call.latents)
        )

    def _may_be_interleaved(self, generation: Generation, call: Call) -> bool:
        """Whether a new generation may run at the same time as an unfinished one."""
        if not self._is_unfinished(generation):
            return False
        if (call.reading.index or 0) > 0:
            return True
        same_table = call.reading.table is generation.table
        return same_table and generation.find_lane(call) is not None

    def _is_unfinished(self, generation: Generation) -> bool:
        """Whether more than one step is left, by the schedule or by earlier timesteps."""
        if generation.schedule.is_known:
            return not generation.is_nearly_done
        return self._known.go_on_after(generation.timestep)

    def _check_recalled(self, generation: Generation, call: Call, step: int) -> None:
        """Without a table: check that the timesteps continue those of an earlier generation."""
        value = call.reading.value
        if value is None or call.index is not None or not generation.recalled:
            return
        generation.recall(going_on(generation.recalled, step, value))
        if not generation.recalled and generation.trusted:
            generation.trusted = False
            generation.note(_OTHER_TIMESTEPS)

    def _begin(self, call: Call, suspicious: bool = False) -> Generation:
        before = self.generation
        if before is not None:
            if before.table is None and not before.closed:
                self._known.learn(before.seen)
            before.free()
        given = self._given
        stated_steps = call.schedule.num_steps if call.schedule is not None else None
        if given is not None and stated_steps in (None, given.num_steps):
            call = replace(call, schedule=given)
        self.generation = Generation(call, trusted=not suspicious)
        if not self.generation.schedule.is_known and call.reading.value is not None:
            self.generation.recall(self._known.starting_with(call.reading.value))
        if suspicious:
            self.generation.note(_INTERLEAVED)
        return self.generation
