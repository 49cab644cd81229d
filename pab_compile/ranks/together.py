"""Together: before a program runs, its ranks make sure that all of them run it on the same.

At the first step of a generation they compare the place of each call, the decisions of all steps,
and prints of inputs and weights; at the second step the latents once more. That reads one number
per input from the device. Later calls that follow from it compare nothing (``course``).
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Mapping, Sequence

import torch

from pab_compile.errors import RanksError
from pab_compile.plans.decisions import Decisions
from pab_compile.runtime.generation import Generation, Place
from pab_compile.runtime.lane import Lane
from pab_compile.runtime.weights import WeightMarks

from .course import Moment
from .prints import prints_of, sampled_prints
from .send import from_first_rank, sent_from_first_rank
from .team import Team
from .words import (
    CALL,
    DECISIONS,
    INPUT,
    PROGRAM,
    SIZES,
    TIMESTEPS,
    WEIGHT,
    WEIGHTS,
    Words,
    differing,
    sizes_of,
    some_compile,
)

_LISTED, _LENGTH = 8, 40


class Together:
    """The ranks that run one program.

    Args:
        team: the ranks.
        inputs: position of an input that the caller gives -> its name.
        latents: name of the tensor that is denoised.
        clock: name of the timestep.
        prompts: names of the inputs that stay the same during a generation.
        weights: position of a weight -> its name.
        sends: whether the inputs of the first rank are sent to all.
        shares_calls: whether two halves of the ranks share the calls of a step.

    Attributes:
        halves: what shares the calls; None if all ranks make each call together.
        inputs: as given.
        fingerprint: what all ranks compiled alike.
    """

    def __init__(
        self,
        team: Team,
        inputs: Mapping[int, str],
        latents: str,
        clock: str,
        prompts: Sequence[str],
        weights: Mapping[int, str],
        sends: bool,
        shares_calls: bool = False,
    ) -> None:
        self._team = team
        self.halves = team.halves if shares_calls else None
        self.inputs = self._inputs = inputs
        self.fingerprint = ""
        self._latents, self._clock, self._prompts = latents, clock, frozenset(prompts)
        self._weights = weights
        self._sends = sends
        self._marks: tuple[WeightMarks, str] | None = None
        self._received: weakref.WeakKeyDictionary[Lane, dict[str, torch.Tensor]]
        self._received = weakref.WeakKeyDictionary()

    def before(
        self,
        tensors: Sequence[torch.Tensor],
        place: Place | None,
        program: str,
        decisions: Decisions | None,
        reused: tuple[bool, ...],
    ) -> Sequence[torch.Tensor]:
        """Agree on a run, unless it follows from what was agreed on.

        Args:
            tensors: the inputs of the program.
            place: where the call belongs; None if that is unknown.
            program: identifies the program.
            decisions: of the program in this generation; None without a place.
            reused: per site, whether it is reused.

        Returns:
            The inputs to run on: these, or those of the first rank.

        Raises:
            RanksError: the ranks differ, or one is missing.
        """
        if place is None or decisions is None:
            call = "a call whose step is unknown"
            self._compare({CALL: call, **self._prints(tensors, self._inputs)}, tensors, True)
        else:
            seen = (place.lane.weights.get(program), place.lane.prompts)
            moment = Moment(program, place, decisions, reused, seen)
            if not self._team.course.follows(moment):
                self._agree(tensors, moment)
            self._team.course.add(moment)
        self._team.run()
        return self._sent(tensors, place) if self._sends else tensors

    def _agree(self, tensors: Sequence[torch.Tensor], moment: Moment) -> None:
        course, generation = self._team.course, moment.place.generation
        is_new = course.is_new(moment)
        said = {
            CALL: f"{'begins a generation at ' if is_new else ''}{_place_in(generation)}",
            "reuse": "".join("01"[reused] for reused in moment.reused),
            DECISIONS: f"{len(moment.reused)} sites, {moment.decisions.digest()}",
            TIMESTEPS: _timesteps_of(generation),
        }
        names: Mapping[int, str] = {}
        if not course.knows(moment):
            names = self._inputs
        elif course.is_second(moment):
            names = {i: name for i, name in self._inputs.items() if name == self._latents}
        said |= self._prints(tensors, names)
        said[WEIGHTS] = self._print_of_weights(tensors)
        self._compare(said, tensors, is_new)

    def _compare(self, said: Words, tensors: Sequence[torch.Tensor], may_begin: bool) -> None:
        own = ((name, tensors[position]) for position, name in self._inputs.items())
        said = {**said, SIZES: sizes_of(own)}
        found = self._team.compare(said, may_begin=may_begin)
        while some_compile(found):  # afterwards they make this call too
            self._team.agree({PROGRAM: self.fingerprint})
            found = self._team.compare(said)
        names = differing(found)
        if not names:
            return
        if names == [WEIGHTS]:  # all ranks see that, so all tell more
            own = {name: tensors[position] for position, name in self._weights.items()}
            prints = sampled_prints(own)
            found = self._team.compare({f"{WEIGHT}{name!r}": x for name, x in prints.items()})
        raise RanksError(self._team.difference(found))

    def _prints(self, tensors: Sequence[torch.Tensor], names: Mapping[int, str]) -> Words:
        """Prints of inputs that are not sent."""
        own = {
            name: tensors[position]
            for position, name in names.items()
            if not self._may_send(name, tensors[position])
        }
        return {f"{INPUT}{name!r}": found for name, found in prints_of(own).items()}

    def _print_of_weights(self, tensors: Sequence[torch.Tensor]) -> str:
        """One print of all weights, made anew if one of them changed."""
        weights = {name: tensors[position] for position, name in self._weights.items()}
        if self._marks is None or not self._marks[0].are_unchanged(list(weights.values())):
            prints = "".join(sampled_prints(weights).values())
            number = int.from_bytes(prints.encode(), "little") % (2**61 - 1)
            self._marks = WeightMarks(list(weights.values())), f"{number:x}"
        return self._marks[1]

    def _may_send(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether an input is sent. Each rank reads its own clock."""
        return self._sends and name != self._clock and self._team.can_send(tensor)

    def _sent(self, tensors: Sequence[torch.Tensor], place: Place | None) -> list[torch.Tensor]:
        """The inputs, with those of the first rank. Prompts are sent once per lane."""
        found = list(tensors)
        kept = {} if place is None else self._received.setdefault(place.lane, {})
        stepping = place.generation.lanes.stepping if place is not None else frozenset()
        for position, name in self._inputs.items():
            if not self._may_send(name, tensors[position]):
                continue
            if name in self._prompts and name not in stepping:
                if name not in kept:
                    kept[name] = self._first(tensors[position], place)
                found[position] = kept[name]
            else:
                found[position] = self._first(tensors[position], place)
        return found

    def _first(self, tensor: torch.Tensor, place: Place | None) -> torch.Tensor:
        """The tensor of the first rank."""
        if place is not None:
            place.record.exchanged += sent_from_first_rank(tensor, self._team.grid)
        return from_first_rank(tensor, self._team.grid)


def _place_in(generation: Generation) -> str:
    number = generation.schedule.num_steps
    of = f" of {number}" if number is not None else ""
    timestep = "" if generation.timestep is None else f" (timestep {generation.timestep:g})"
    return f"step {generation.step}{of}{timestep}"


def _timesteps_of(generation: Generation) -> str:
    timesteps = generation.schedule.timesteps
    if timesteps is None:
        return "unknown"
    listed = " ".join(f"{timestep:.6g}" for timestep in timesteps)
    if len(timesteps) <= _LISTED:
        return listed
    digest = hashlib.sha256(listed.encode()).hexdigest()[:8]
    return f"{listed[:_LENGTH]}... ({len(timesteps)} of them, {digest})"
