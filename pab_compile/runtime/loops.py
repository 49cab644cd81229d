"""Loops: whether a loop around the loop over steps, in the same function, went on.

::

    for seed in seeds:                    # an outer loop; ``seed`` and ``noise`` are its own
        noise = torch.randn(...)
        x = noise
        for t in timesteps:               # the innermost loop
            x = step(model(x, t, prompt))

A variable that only an outer loop assigns is another object once this loop went on. The variables
come from the bytecode, since the source may not be there.
"""

from __future__ import annotations

import dis
import functools
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .caller import Callers, Run

_NO = (-1, -1)
_JUMPS = frozenset(dis.hasjrel) | frozenset(dis.hasjabs)
_LOCAL = frozenset({"STORE_FAST", "STORE_NAME", "STORE_GLOBAL", "STORE_DEREF"})
_PAIRS = {  # instructions of Python 3.13 that do two things: which of the two names they assign
    "STORE_FAST_STORE_FAST": slice(0, 2),
    "STORE_FAST_LOAD_FAST": slice(0, 1),
}


@dataclass(frozen=True)
class CallLoop:
    """A loop around a call.

    Attributes:
        own: variables that it assigns, and no loop inside it around the call does.
        targets: those of them that a ``for`` loop runs through.
        restarts: whether it starts a ``for`` loop anew at each turn.
    """

    own: tuple[str, ...]
    restarts: bool = False
    targets: tuple[str, ...] = ()

    @property
    def is_hidden(self) -> bool:
        """Whether nothing shows that it went on, although it is no loop over steps."""
        return self.restarts and not self.own


@functools.lru_cache(maxsize=1024)
def loops_around(code: CodeType, offset: int) -> tuple[CallLoop, ...]:
    """The loops around an offset in the bytecode, the outermost first."""
    around = [(start, end) for start, end in _loops(code) if start <= offset <= end]
    around.sort(key=lambda loop: loop[0] - loop[1])
    found = []
    for (start, end), (inner, inner_end) in itertools.zip_longest(
        around, around[1:], fillvalue=_NO
    ):
        parts = [each for each in _instructions(code) if start <= each.offset <= end]
        outside = [each for each in parts if not inner <= each.offset <= inner_end]
        inside = [each for each in parts if inner <= each.offset <= inner_end]
        changing = {name for each in inside for name in _assigned(each)} | _assigned_by_others(code)
        own = sorted({name for each in outside for name in _assigned(each)} - changing)
        targets = tuple(name for name in _targets(parts) if name in own)
        restarts = any(each.opname in ("GET_ITER", "GET_AITER") for each in outside)
        found.append(CallLoop(tuple(own), restarts and bool(inside), targets))
    return tuple(found)


@functools.lru_cache(maxsize=256)
def _instructions(code: CodeType) -> tuple[dis.Instruction, ...]:
    return tuple(dis.get_instructions(code))


@functools.lru_cache(maxsize=1024)
def _loops(code: CodeType) -> tuple[tuple[int, int], ...]:
    """First and last offset of each loop."""
    ends: dict[int, int] = {}
    for each in _instructions(code):
        is_wait = each.opname == "JUMP_BACKWARD_NO_INTERRUPT"  # of ``await``
        if each.opcode in _JUMPS and each.argval <= each.offset and not is_wait:
            ends[each.argval] = max(each.offset, ends.get(each.argval, 0))
    return tuple(sorted(ends.items()))


def _assigned(instruction: dis.Instruction) -> list[str]:
    """The variables that an instruction assigns. Those without a proper name are not the user's."""
    names: tuple[str, ...] = ()
    if instruction.opname in _LOCAL:
        names = (instruction.argval,)
    elif instruction.opname in _PAIRS:
        names = instruction.argval[_PAIRS[instruction.opname]]
    return [name for name in names if name.isidentifier()]


def _targets(loop: Sequence[dis.Instruction]) -> Iterator[str]:
    """The variables that a ``for`` loop assigns before its body."""
    if loop[0].opname == "FOR_ITER":
        for each in loop[1:]:
            if names := _assigned(each):
                yield from names
            elif each.opname not in ("UNPACK_SEQUENCE", "UNPACK_EX", "CACHE", "EXTENDED_ARG"):
                break


@functools.lru_cache(maxsize=256)
def _assigned_by_others(code: CodeType) -> frozenset[str]:
    """The variables that functions inside a function assign (``nonlocal``)."""
    found: set[str] = set()
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            assigned = {name for each in _instructions(inner) for name in _assigned(each)}
            found |= (assigned & set(inner.co_freevars)) | _assigned_by_others(inner)
    return frozenset(found)


_ABSENT = object()


class Turn:
    """The turns of the loops in which a call happens.

    Args:
        loops: the loops around the call, the outermost first.
        variables: the variables of the function. Only numbers, text and containers are held.
    """

    def __init__(self, loops: tuple[CallLoop, ...], variables: Mapping[str, Any]) -> None:
        self._loops = loops
        self._held = {
            name: _hold(variables.get(name, _ABSENT)) for loop in loops for name in loop.own
        }

    @property
    def is_hidden(self) -> bool:
        """Whether a loop may go on without a sign."""
        return any(loop.is_hidden for loop in self._loops)

    @property
    def innermost(self) -> int:
        """The number of the innermost loop. The outermost has number 0."""
        return len(self._loops) - 1

    def has(self, number: int, is_timestep: Callable[[Any], bool], in_target: bool) -> bool:
        """Whether a loop has the timestep in a variable of its own.

        Args:
            number: of the loop.
            is_timestep: whether a variable is the timestep.
            in_target: count only what a ``for`` loop runs through.
        """
        loop = self._loops[number]
        names = loop.targets if in_target else loop.own
        return any(is_timestep(_value(self._held[name])) for name in names)

    def outermost_gone_on(self, later: Turn) -> int | None:
        """The number of the outermost loop that went on until a later call; None for none."""
        if self._loops != later._loops:
            return None
        for number, loop in enumerate(self._loops):
            if not all(_is_same(self._held[name], later._held[name]) for name in loop.own):
                return number
        return None


def _value(held: Any) -> Any:
    return held() if isinstance(held, weakref.ref) else held


def _hold(value: Any) -> Any:
    if type(value) is torch.Tensor and value.numel() == 1:
        return value  # it may be the timestep, which the next step asks for
    try:
        return weakref.ref(value)
    except TypeError:  # numbers, text, lists, dicts
        return value


def _is_same(one: Any, other: Any) -> bool:
    """Whether two held variables are one object that still lives."""
    return _value(one) is _value(other) is not None or one is other is None


class Doubt(Enum):
    """What is doubtful about the steps so far, once a further step begins."""

    NONE = "none"
    EARLIER_STEPS = "they may be of another turn of an outer loop"
    ALL_STEPS = "a turn of an outer loop would not be seen"


class StepLoop:
    """Which of the loops around a call is the loop over steps.

    It is the outermost loop that goes on from each step to the next. If a loop outside of it went
    on, another video began. It is the innermost loop, or the one around a loop over the calls of a
    step. Any other must have the timestep in a variable of its own: it may be a loop over videos
    that are left after one step.

    Args:
        callers: the functions around the first call.
        is_timestep: whether a variable is the timestep of the first call.
    """

    def __init__(self, callers: Callers, is_timestep: Callable[[Any], bool]) -> None:
        self._turns = callers.turns()
        self._first = callers
        self._is_timestep = is_timestep
        self._within_step: set[Run] = set()  # functions whose innermost loop is part of a step
        self._number: int | None = None
        self._shown: int | None = None  # the loop that has the timestep

    def call(self, callers: Callers) -> None:
        """Note a call at the first step."""
        is_further = callers is not self._first and callers.site == self._first.site
        if self._turns and self._number is None and is_further:
            for run, now in callers.turns().items():
                then = self._turns.get(run)
                if then is not None and then.outermost_gone_on(now) == then.innermost:
                    self._within_step.add(run)

    def is_left(self, callers: Callers, run: Run | None) -> bool:
        """Whether a call is of another turn of a loop around the loop over steps.

        Args:
            callers: the functions around the call.
            run: the function that loops over the steps.
        """
        gone_on = self._gone_on(callers, run)
        return gone_on is not None and self._number is not None and gone_on < self._number

    def follow(
        self, callers: Callers, run: Run | None, is_timestep: Callable[[Any], bool]
    ) -> Doubt:
        """Note the first call of a further step.

        Args:
            callers: the functions around the call.
            run: the function that loops over the steps.
            is_timestep: whether a variable is the timestep of this call.

        Returns:
            What is now known to be doubtful.
        """
        gone_on, before, was_timestep = self._gone_on(callers, run), self._number, self._is_timestep
        then = self._turns.get(run) if run is not None else None
        self._turns, self._is_timestep = callers.turns() if self._turns else {}, is_timestep
        now = self._turns.get(run) if run is not None else None
        if gone_on is None or then is None or now is None:
            return Doubt.NONE
        self._number = gone_on
        if now.is_hidden and gone_on == now.innermost:
            return Doubt.ALL_STEPS
        is_known = gone_on >= now.innermost - (run in self._within_step) or gone_on == self._shown
        if not is_known:  # both steps show the timestep; a variable may have only that of a start
            in_target = before is None
            is_known = now.has(gone_on, is_timestep, in_target)
            is_known = is_known and then.has(gone_on, was_timestep, in_target)
            self._shown = gone_on if is_known else None
        return Doubt.NONE if is_known and before in (None, gone_on) else Doubt.EARLIER_STEPS

    def _gone_on(self, callers: Callers, run: Run | None) -> int | None:
        """The number of the outermost loop that went on since the last step.

        It is the innermost loop if no variable shows one. It is None without a known turn.
        """
        then = self._turns.get(run) if run is not None else None
        now = callers.turns().get(run) if run is not None and then is not None else None
        if then is None or now is None:
            return None
        found = then.outermost_gone_on(now)
        return now.innermost if found is None else found
