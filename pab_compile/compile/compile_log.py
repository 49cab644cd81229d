"""Compile log: one line per program that says what was compiled, why, and how long it took.

The line is written after the first run, since the inner compiler compiles a piece at its first
call. The logger is ``pab_compile.compile.compile_log``, the level INFO::

    LatteTransformer3DModel: first program; hidden_states 1x4x4x8x8, timestep 1; 5 sites; 7 pieces
    (5 new, 2 shared); 9.1 s: capture 0.8, passes 1.9, inner compiler 5.9
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from pab_compile.dynamo import model_calls
from pab_compile.passes.graph.join import Given

from .lower import PieceCompiler
from .request import Request
from .runnable import Runnable

_log = logging.getLogger(__name__)
_MAX_INPUTS = 6
_MAX_WORDS = 200


@dataclass(frozen=True)
class _Cause:
    """What a program depends on, in words."""

    sizes: Mapping[str, str]
    form: str
    stepping: frozenset[str]
    is_observed: bool
    way: int

    @staticmethod
    def of(request: Request) -> _Cause:
        pairs = zip(request.origins, request.tensors, strict=True)
        sizes = {
            origin.name if isinstance(origin, Given) else f"tensor {number}": _size(tensor.shape)
            for number, (origin, tensor) in enumerate(pairs)
            if origin is not None
        }
        way = hash((request.alone, request.origins, request.volatile))
        return _Cause(sizes, str(request.form), request.stepping, request.is_observed, way)

    def since(self, earlier: _Cause) -> list[str]:
        """What differs from that of an earlier program."""
        changed = [name for name, size in self.sizes.items() if earlier.sizes.get(name) != size]
        reasons: list[str] = []
        if self.way != earlier.way:
            reasons.append("another way through the forward")
        elif changed:
            was = earlier.sizes
            sizes = ", ".join(f"{n} {was.get(n, '-')} -> {self.sizes[n]}" for n in changed)
            reasons.append(f"other sizes ({sizes})")
        if self.is_observed != earlier.is_observed:
            reasons.append("an observation" if self.is_observed else "the end of an observation")
        if self.form != earlier.form:
            reasons.append("a plan of another form")
        if self.stepping != earlier.stepping:
            names = ", ".join(sorted(self.stepping)) or "none"
            reasons.append(f"inputs that turned out to change at every step ({names})")
        return reasons


@dataclass
class _Entry:
    """A program that is compiled, or that has not run yet."""

    request: Request
    start: float
    num_pieces: int
    num_asked: int
    inner_seconds: float
    reasons: list[str]
    program: Runnable | None = None
    num_new: int = 0
    num_used: int = 0
    seconds: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)


class _Causes:
    """The causes of all programs of a model, by the place of their graph in the forward."""

    def __init__(self) -> None:
        self._of_owner: weakref.WeakKeyDictionary[Any, dict[int, list[_Cause]]]
        self._of_owner = weakref.WeakKeyDictionary()

    def at(self, number: int) -> list[_Cause]:
        """The list for a graph of the model that is called; a new one if it is unknown."""
        calls = model_calls()
        try:
            return self._of_owner.setdefault(calls[0].owner, {}).setdefault(number, [])
        except (IndexError, TypeError):  # nothing is called, or its class has no room for a mark
            return []


_causes = _Causes()
_current: ContextVar[_Entry | None] = ContextVar("_current", default=None)


@contextmanager
def timed(part: str) -> Iterator[None]:
    """Count the time of a part of the compilation that runs, such as ``capture``."""
    start, entry = time.perf_counter(), _current.get()
    try:
        yield
    finally:
        if entry is not None:
            entry.parts[part] = entry.parts.get(part, 0.0) + time.perf_counter() - start


class CompileLog:
    """Writes one line for every program of one Dynamo graph."""

    def __init__(self) -> None:
        self._is_new = True
        self._waiting: list[_Entry] = []

    @contextmanager
    def compiling(self, request: Request, compiler: PieceCompiler) -> Iterator[_Entry]:
        """Watch the compilation of a program, which the caller sets on the entry."""
        cause, earlier = _Cause.of(request), _causes.at(request.number)
        reasons = min((cause.since(other) for other in earlier), key=len, default=["first program"])
        if earlier and self._is_new:
            reasons = ["Dynamo traced it again", *reasons]
        entry = _Entry(
            request,
            time.perf_counter(),
            compiler.num_pieces,
            compiler.num_asked,
            compiler.compile_seconds,
            reasons,
        )
        token = _current.set(entry)
        try:
            yield entry
        finally:
            _current.reset(token)
        entry.seconds = time.perf_counter() - entry.start
        entry.num_new = compiler.num_pieces - entry.num_pieces
        entry.num_used = compiler.num_asked - entry.num_asked
        earlier.append(cause)
        self._is_new = False
        self._waiting.append(entry)

    def ran(self, compiler: PieceCompiler) -> None:
        """Write what was compiled for the call that just ended."""
        while self._waiting:
            entry = self._waiting.pop(0)
            if _log.isEnabledFor(logging.INFO):
                _log.info("%s", _line(entry, compiler))


def _line(entry: _Entry, compiler: PieceCompiler) -> str:
    request, program = entry.request, entry.program
    calls = model_calls()
    name = getattr(calls[0].owner, "__qualname__", type(calls[0].owner).__name__) if calls else ""
    place = "" if request.alone else f" (graph {request.number + 1} of the forward)"
    words = [f"{name or 'a graph'}{place}: {', '.join(entry.reasons) or 'other numbers'}"]
    if entry.reasons == ["first program"]:
        sizes = [f"{name} {size}" for name, size in _Cause.of(request).sizes.items()]
        words.append(", ".join(sizes[:_MAX_INPUTS]) + (", ..." if sizes[_MAX_INPUTS:] else ""))
    if program is not None and not program.sites:
        reason = program.finding.reason or "it has nothing to reuse"
        words.append(f"computed at every step: {reason[:_MAX_WORDS]}")
    elif program is not None:
        words.append(f"{len(program.sites)} sites")
    shared = max(0, entry.num_used - entry.num_new)
    if entry.num_new + shared:
        words.append(f"{entry.num_new + shared} pieces ({entry.num_new} new, {shared} shared)")
    elif program is not None:
        words.append("the pieces of other sizes serve")
    if compiler.num_waiting:
        words.append(f"{compiler.num_waiting} pieces are compiled in the background")
    inner = compiler.compile_seconds - entry.inner_seconds
    passes = _pass_seconds(program) if "capture" in entry.parts else 0.0
    parts = {**entry.parts, "passes": passes, "inner compiler": inner}
    spent = ", ".join(f"{part} {seconds:.1f}" for part, seconds in parts.items())
    words.append(f"{entry.seconds + inner:.1f} s: {spent}")
    return "; ".join(words)


def _pass_seconds(program: Runnable | None) -> float:
    return sum(program.finding.seconds.values()) if program is not None else 0.0


def _size(shape: Any) -> str:
    return "x".join(map(str, shape)) or "one number"
