"""Course: the calls that ranks agreed on, so that they need not agree on each of them.

At the first step of a generation the ranks agree on each call. The later steps follow from it if
they make the same calls in the same order, and reuse what the decisions say. Any other call is
agreed on. What follows is the same for ranks in the same state, so either all of them agree or
none; a rank in another state waits alone, and the watch finds that (``watch``).
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Hashable
from dataclasses import dataclass

from pab_compile.plans.decisions import Decisions
from pab_compile.runtime.generation import Place


@dataclass(frozen=True, eq=False)
class Moment:
    """One run of a program.

    Attributes:
        program: which program.
        place: where the call belongs.
        decisions: of the program in this generation.
        reused: per site, whether it is reused.
        seen: objects that are others once the lane saw other weights or prompts.
    """

    program: Hashable
    place: Place
    decisions: Decisions
    reused: tuple[bool, ...]
    seen: tuple[object, ...]


class Course:
    """The calls of a generation that the ranks agreed on."""

    def __init__(self) -> None:
        self._generation: weakref.ref[object] | None = None
        self._agreed: list[tuple[weakref.ref[object], Hashable, Decisions, tuple[object, ...]]]
        self._agreed = []
        self._step = self._first_step = -1
        self._before: list[int] = []
        self._now: list[int] = []

    def follows(self, moment: Moment) -> bool:
        """Whether a call follows from what was agreed on. If not, the ranks must agree on it."""
        number = self._number(moment)
        step, is_ahead = moment.place.generation.step, moment.decisions.is_ahead
        if number is None or not is_ahead or step == self._first_step:
            return False
        decided = moment.decisions.at(step, moment.place.generation.timestep)
        if moment.reused != tuple(decision.reuses for decision in decided):
            return False
        if step == self._step:
            position = len(self._now)
            return position < len(self._before) and self._before[position] == number
        is_full = self._step == self._first_step or self._now == self._before
        is_next = step == self._step + 1 and is_full and self._now[0] == number
        return is_next and step > self._first_step + 1

    def is_new(self, moment: Moment) -> bool:
        """Whether a call begins another generation than the last one."""
        return self._generation is None or self._generation() is not moment.place.generation

    def knows(self, moment: Moment) -> bool:
        """Whether its lane and program were agreed on, with these weights and prompts."""
        return self._number(moment) is not None

    def is_second(self, moment: Moment) -> bool:
        """Whether a call is the first one after the first step.

        Its latents show whether the samplers did the same.
        """
        step = moment.place.generation.step
        return not self.is_new(moment) and step == self._first_step + 1 and step != self._step

    def add(self, moment: Moment) -> int:
        """Note a call that follows, or that the ranks agreed on. Returns its number in the step."""
        generation = moment.place.generation
        if self.is_new(moment):
            self._generation = weakref.ref(generation)
            self._agreed = []
            self._before, self._now = [], []
            self._step = self._first_step = generation.step
        if generation.step != self._step:
            self._step, self._before, self._now = generation.step, self._now, []
        number = self._number(moment)
        if number is None:
            number = len(self._agreed)
            lane: weakref.ref[object] = weakref.ref(moment.place.lane)
            self._agreed.append((lane, moment.program, moment.decisions, moment.seen))
        self._now.append(number)
        return number

    def _number(self, moment: Moment) -> int | None:
        """The number of a lane and a program that were agreed on with these decisions."""
        if self.is_new(moment):
            return None
        for number, (lane, program, decisions, seen) in enumerate(self._agreed):
            is_it = lane() is moment.place.lane and program == moment.program
            is_same = all(map(operator.is_, seen, moment.seen))
            if is_it and is_same and decisions is moment.decisions:
                return number
        return None
