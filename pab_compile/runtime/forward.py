"""Forwards: the graphs that one call of a compiled model runs, and the tensors between them.

Dynamo may break a forward into several graphs, with Python code between them. Graphs belong to one
forward if the same call of the compiled model is on Python's stack while they run. Each input of a
later graph is one of three: a tensor that the caller passed, a tensor that an earlier graph
returned, or a tensor that Python code made. Nothing is known of the last sort.
"""

from __future__ import annotations

import itertools
import weakref
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pab_compile.dynamo import ModelCall, model_calls
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.inputs import Inputs
from pab_compile.passes.graph.join import Eager, Given, Made, Origin, Part
from pab_compile.passes.sites.site import Site
from pab_compile.report.explanation import Finding

from .clock import version_of
from .generation import Place
from .tracker import Tracker

_MAX_LIVE = 8


class Ran(Protocol):
    """A graph that ran in a forward."""

    @property
    def part(self) -> Part | None:
        """The captured graph; None if it could not be captured."""
        ...

    @property
    def sites(self) -> Sequence[Site]:
        """Its sites with a branch; or, if no site has one, the attentions that could be reused."""
        ...

    @property
    def finding(self) -> Finding:
        """What was found in it."""
        ...


@dataclass(frozen=True, eq=False)
class _Known:
    """A tensor of this forward, with its version at that time."""

    tensor: weakref.ref[torch.Tensor]
    version: int
    origin: Origin
    shared: bool = False


class Forward:
    """One call of a compiled model.

    Args:
        call: the call. None if it is not on the stack; then the current graph is all of it.

    Attributes:
        token: an object that only this call has; None after the call.
        starts_at_root: whether its first graph belongs to the model's own ``forward``.
        module: gives the module that was called; None if it was a function.
        inputs: name -> tensor that the caller passed or that the first graph read.
        visited: the graphs that ran so far, in order.
        findings: what was found in each graph.
        breaks: why Dynamo broke the forward after each graph; ``""`` if it did not.
        tracker: finds the place of this call. None until a graph needs it.
        place: generation, lane and record of this call; None computes everything.
        is_placed: whether the tracker was asked for the place.
        placed_as: latents and clock of the graph that found the place by names alone. Graphs with
            others compute. None if data flow showed them.
        failed: whether a graph raised an error.
    """

    def __init__(self, call: ModelCall | None) -> None:
        self.token = call.token if call else None
        self.starts_at_root = call is None or call.is_root
        module = call.module if call else None
        self.module = (lambda: None) if module is None else weakref.ref(module)
        self.inputs: dict[str, torch.Tensor] = {}
        self.visited: list[Ran] = []
        self.findings: list[Finding] = []
        self.breaks: list[str] = []
        self.tracker: Tracker | None = None
        self.place: Place | None = None
        self.is_placed = False
        self.placed_as: tuple[str, str] | None = None
        self.failed = False
        self._known: dict[int, _Known] = {}
        self._num_eager = 0
        self._turns: Counter[Hashable] = Counter()
        for path, tensor in _named_tensors(call) if call else ():
            name = path[-1] if path[-1] not in self.inputs else ".".join(path)
            if self._find(tensor) is None:
                self._note(tensor, Given(name))
                self.inputs[name] = tensor

    def origins(
        self, inputs: Inputs, tensors: Sequence[torch.Tensor]
    ) -> tuple[tuple[Origin | None, ...], frozenset[int]]:
        """Where the inputs of a graph come from, and which may change without notice."""
        origins: list[Origin | None] = [None] * len(tensors)
        volatile: list[int] = []
        taken: set[str] = set()
        for number, name in inputs.callers:
            tensor = tensors[number]
            if number in inputs.measured:
                origins[number] = self._note_eager(tensor).origin
                continue
            known = self._find(tensor)
            if not self.visited and self.starts_at_root:
                name = name if name not in taken else f"{name}.{number}"
                taken.add(name)
                known = self._note(tensor, Given(name))
                self._name_input(name, tensor)
            elif known is None:
                known = self._note_eager(tensor)
            if isinstance(known.origin, Made) and (known.shared or tensor.is_inference()):
                volatile.append(number)
            origins[number] = known.origin
        return tuple(origins), frozenset(volatile)

    def turn(self, graph: Hashable, origins: tuple[Origin | None, ...]) -> int:
        """How often a graph ran before in this forward, with inputs of these origins.

        It may run for one layer after the other with nothing but other weights.
        """
        self._turns[graph, origins] += 1
        return self._turns[graph, origins] - 1

    def finish(
        self,
        program: Ran,
        tensors: Sequence[torch.Tensor],
        outputs: Sequence[Any],
        finding: Finding | None = None,
    ) -> None:
        """Remember what a graph returned, and what it wrote into its inputs.

        Args:
            program: the graph.
            tensors: its inputs.
            outputs: what it returned.
            finding: what was found in it, under the plan that holds. None: as the program says.
        """
        self.visited.append(program)
        self.findings.append(finding or program.finding)
        part = program.part
        if part is None:
            return
        written = ir.mutated_inputs(part.graph_module)
        for position, number in enumerate(written):
            self._note(tensors[number], Made(part, position))
        made = [
            (position, output)
            for position, output in enumerate(outputs, start=len(written))
            if isinstance(output, torch.Tensor) and self._find(output) is None
        ]
        storages = [output.untyped_storage()._cdata for _, output in made]
        for (position, output), storage in zip(made, storages, strict=True):
            self._note(output, Made(part, position), shared=storages.count(storage) > 1)

    def fail(self) -> None:
        """A graph raised an error, so the cache of the generation is dropped."""
        self.failed = True
        if self.tracker is not None:
            self.tracker.drop()

    def close(self) -> None:
        """The call is over: release its tensors."""
        self.token = None
        self.place = None
        self.inputs.clear()
        self._known.clear()
        self._turns.clear()

    def _name_input(self, name: str, tensor: torch.Tensor) -> None:
        """In the first graph, an input has the name that Dynamo gives it."""
        for other in [other for other, known in self.inputs.items() if known is tensor]:
            del self.inputs[other]
        if name in self.inputs:  # a hook replaced it, for instance to move it to a device
            self.inputs[callers(name)] = self.inputs[name]
        self.inputs[name] = tensor

    def _find(self, tensor: torch.Tensor) -> _Known | None:
        known = self._known.get(id(tensor))
        if known is None or known.tensor() is not tensor or version_of(tensor) != known.version:
            return None
        return known

    def _note_eager(self, tensor: torch.Tensor) -> _Known:
        self._num_eager += 1
        return self._note(tensor, Eager(self._num_eager - 1))

    def _note(self, tensor: torch.Tensor, origin: Origin, shared: bool = False) -> _Known:
        known = _Known(weakref.ref(tensor), version_of(tensor), origin, shared)
        self._known[id(tensor)] = known
        return known


class Forwards:
    """The forwards that run in one scope. They may be nested."""

    def __init__(self) -> None:
        self._live: list[Forward] = []

    def current(self) -> Forward:
        """The forward of the graph that is about to run."""
        calls = model_calls()
        if calls:
            for forward in reversed(self._live):
                if forward.token is calls[0].token:
                    return forward
        for forward in self._live:
            if all(forward.token is not call.token for call in calls):
                forward.close()
        forward = Forward(calls[0] if calls else None)
        self._live = [*self._live[1 - _MAX_LIVE :], forward]
        return forward

    def end(self, forward: Forward) -> None:
        """Drop a forward that is over."""
        forward.close()
        self._live = [other for other in self._live if other is not forward]

    def before(self, forward: Forward) -> Iterator[Forward]:
        """The forwards that began before this one, the latest first."""
        begun = itertools.takewhile(lambda other: other is not forward, self._live)
        return reversed(list(begun))

    def clear(self) -> None:
        """Drop all forwards."""
        self._live.clear()


def callers(name: str) -> str:
    """Name of a tensor that the caller passed, if the first graph got another in its place."""
    return f"the caller's {name}"


def _named_tensors(call: ModelCall) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    names = call.names() if call.args else ()
    yield from _leaves((), dict(zip(names, call.args, strict=False)))
    yield from _leaves(("args",), call.args[len(names) :])
    yield from _leaves((), call.keywords)


def _leaves(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves((*path, str(key)), item)
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            place = (*path[:-1], f"{path[-1]}[{number}]") if path else (str(number),)
            yield from _leaves(place, item)
