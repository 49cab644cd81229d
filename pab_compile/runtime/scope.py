"""Scopes: where the state of running generations lives.

By default every thread has its own scope. ``generation()`` opens a new scope for its block. A
context variable holds it, so tasks see it too. ``step()`` states the step explicitly. Scopes share
nothing.
"""

from __future__ import annotations

import contextvars
import itertools
import operator
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pab_compile.errors import PabError
from pab_compile.plans.schedule import Schedule

from .forward import Forwards
from .tracker import Tracker


class Scope:
    """Trackers and forwards of all compiled models that run in a thread or ``generation()`` block.

    Args:
        schedule: timesteps that the user gave, or None.
        is_one: whether the scope is one generation, as a ``generation()`` block is.

    Attributes:
        forwards: the calls of compiled models that run now or ran last.
    """

    def __init__(self, schedule: Schedule | None = None, is_one: bool = False) -> None:
        self._schedule = schedule
        self._is_one = is_one
        self._trackers: dict[tuple[int, ...], tuple[_ModelTracker, ...]] = {}
        self.forwards = Forwards()

    def tracker(self, identity: Sequence[object], options: object) -> Tracker:
        """The tracker of a compiled model.

        Args:
            identity: objects that live as long as the model: its weights, or what was called.
            options: identify the compilation. They are compared by value, since Dynamo may run code
                of one compilation in another one with equal options.
        """
        key = tuple(map(id, identity))
        entries = self._trackers.get(key, ())
        for entry in entries:
            if entry.anchor() is identity[0] and entry.is_of(options):
                return entry.tracker
        self._trackers = {
            k: alive
            for k, others in self._trackers.items()
            if (alive := tuple(e for e in others if e.anchor() is not None))
        }
        tracker = Tracker(self._schedule, self._is_one)
        entry = _ModelTracker(weakref.ref(identity[0]), options, tracker)
        self._trackers[key] = (*self._trackers.get(key, ()), entry)
        return entry.tracker

    def free(self) -> None:
        """Free every running generation."""
        for entry in itertools.chain.from_iterable(self._trackers.values()):
            entry.tracker.drop()
        self._trackers.clear()
        self.forwards.clear()


@dataclass(frozen=True, eq=False)
class _ModelTracker:
    anchor: weakref.ref[object]
    options: object
    tracker: Tracker

    def is_of(self, options: object) -> bool:
        return self.options is options or self.options == options


@dataclass(frozen=True)
class ExplicitStep:
    """What ``step()`` states."""

    index: int
    num_steps: int
    lane: str | None


class _ThreadScope(threading.local):
    def __init__(self) -> None:
        self.scope = Scope()


_thread = _ThreadScope()
_stated_scope: contextvars.ContextVar[Scope | None] = contextvars.ContextVar("scope", default=None)
_stated_step: contextvars.ContextVar[ExplicitStep | None] = contextvars.ContextVar(
    "step", default=None
)


def current_scope() -> Scope:
    """The scope of the running code."""
    return _stated_scope.get() or _thread.scope


def stated_step() -> ExplicitStep | None:
    """What the innermost ``step()`` states, or None."""
    return _stated_step.get()


@contextmanager
def generation(timesteps: Iterable[float] | torch.Tensor | None = None) -> Iterator[None]:
    """Run one generation in a scope of its own, freed at the end.

    Args:
        timesteps: the timestep values of all steps in order, if the model's inputs do not show
            them. A tensor is read once.

    Raises:
        PabError: ``timesteps`` is empty, or no list of numbers.
    """
    scope = Scope(schedule_of(timesteps), is_one=True)
    try:
        with in_scope(scope):
            yield
    finally:
        scope.free()


@contextmanager
def in_scope(scope: Scope) -> Iterator[None]:
    """Run a block in a scope, which stays as it is at the end."""
    token = _stated_scope.set(scope)
    try:
        yield
    finally:
        _stated_scope.reset(token)


def schedule_of(timesteps: Iterable[float] | torch.Tensor | None) -> Schedule | None:
    """The schedule that a user states.

    Raises:
        PabError: it is empty, or no list of numbers.
    """
    if timesteps is None:
        return None
    listed = _listed(timesteps)
    return Schedule(len(listed), tuple(listed))


def _listed(timesteps: Any) -> list[float]:
    given = timesteps.tolist() if isinstance(timesteps, torch.Tensor) else timesteps
    if isinstance(given, (int, float)):
        raise PabError(
            f"generation(timesteps={given!r}) got one number. Give the timestep of every step, as "
            "scheduler.timesteps has them after scheduler.set_timesteps(num_steps)."
        )
    try:
        listed = [float(value) for value in given] if not isinstance(given, str) else None
    except (TypeError, ValueError):
        listed = None
    if listed is None:
        raise PabError(
            f"generation(timesteps={given!r}) got no list of numbers: give one number per step."
        )
    if not listed:
        raise PabError("generation(timesteps=...) got no timesteps: give one per step.")
    return listed


@contextmanager
def step(index: int, num_steps: int, lane: str | None = None) -> Iterator[None]:
    """State the step of the calls inside the block. The timestep input is then not read.

    Args:
        index: number of the step, from 0.
        num_steps: number of steps of the generation.
        lane: name of the call if there are several per step, such as ``"cond"``.

    Raises:
        PabError: ``index`` does not lie in ``[0, num_steps)``, or is no integer.
    """
    try:
        index, num_steps = operator.index(index), operator.index(num_steps)
    except TypeError as error:
        raise PabError(
            f"step(index={index!r}, num_steps={num_steps!r}): both are integers, the number of the "
            "step from 0 on, and how many steps there are. The timestep is no argument of step."
        ) from error
    if not 0 <= index < num_steps:
        raise PabError(
            f"step(index={index}, num_steps={num_steps}): the steps are numbered from 0 on, so "
            "index must be below num_steps and not negative."
        )
    token = _stated_step.set(ExplicitStep(index, num_steps, lane))
    try:
        yield
    finally:
        _stated_step.reset(token)


def reset() -> None:
    """Drop every running generation of the current scope and free its cache."""
    current_scope().free()
