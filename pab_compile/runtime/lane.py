"""Lanes: the calls that a pipeline makes at every step, each with its own cache.

A call is identified by the per-prompt inputs that it carries, not by counting calls. Counting would
mix lanes if guidance is switched off in the middle of a generation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from pab_compile.plans.schedule import Schedule

from .cache_entry import CacheEntry
from .caller import NOBODY, Callers, Position, Run
from .clock import Reading
from .identity import Identity
from .kept import Size
from .watched import Watched
from .weights import MarksOf, WeightMarks

MAX_LANES = 8
_MAX_PLACES = 16


Place = tuple[object, ...]


@dataclass(frozen=True)
class Call:
    """One call of a compiled model, as the tracker sees it.

    Attributes:
        reading: what the timestep says. Its value is None if the user stated the step.
        latents: the tensor that is denoised.
        prompts: the per-prompt inputs by name.
        names: which of them distinguish lanes; None for all.
        may_step: which of them may turn out to change at every step (``stepping``).
        is_hidden: whether Python code between graphs may add conditions that are not seen here.
        lane: name of the lane, if the user gave one.
        index: the step, if the user gave one.
        schedule: the schedule, if the user gave one.
        clock_dtype: dtype of the timestep.
        callers: the functions that run around the call.
        rows: rows of numbers one of which may be the schedule, though no function has it in sight.
    """

    reading: Reading
    latents: torch.Tensor
    prompts: Mapping[str, torch.Tensor]
    names: tuple[str, ...] | None = None
    is_hidden: bool = False
    lane: str | None = None
    index: int | None = None
    schedule: Schedule | None = None
    clock_dtype: torch.dtype = torch.float32
    callers: Callers = NOBODY
    may_step: frozenset[str] = frozenset()
    rows: Sequence[Any] = ()

    @property
    def place(self) -> Place:
        """Which part of the latents it gets, and from where in the code it comes.

        A call from another line, of another shape or with another part of one tensor is another
        one at every step.
        """
        x = self.latents
        return self.callers.site, tuple(x.shape), x.stride(), x.storage_offset()

    def without(self, ignored: Collection[str]) -> Call:
        """The same call without some of its per-prompt inputs."""
        if not ignored:
            return self
        prompts = {name: x for name, x in self.prompts.items() if name not in ignored}
        names = self.names and tuple(name for name in self.names if name not in ignored)
        return replace(self, prompts=prompts, names=names)


@dataclass(eq=False)
class Lane:
    """One of the calls per step, with its cache.

    Attributes:
        name: the name that the user gave (``step(lane=...)``), or None.
        prompts: the per-prompt inputs that it carries.
        latents: the latents of its last call.
        place: the place of its last call.
        step: the step of its last call.
        is_repeated: whether its last call was not the first one of that step.
        first_step: the step of its first call.
        first_reusable_step: earliest step whose outputs may be reused. If the loop calls from a
            line from which this lane was not called before, it may be another loop of the same
            function, and the steps before are not its own.
        lines: where its last call came from, and all lines of the loop that called it.
        cache: (graph, site) -> cache entry.
        prelude: (graph, piece) -> values that are computed once for this lane.
        watched: (graph, piece) -> values that are computed again if Python made other tensors.
        weights: graph -> the weights that it ran with, as they were.
        first_runs: graph -> the step at which it ran first.
        number: which lane of its generation it is, from 0.
        differs_from: a lane that was found to have other prompts.
    """

    name: str | None
    prompts: dict[str, Identity]
    latents: Identity
    place: Place
    step: int
    first_step: int
    first_reusable_step: int = 0
    lines: set[tuple[Run, Position]] = field(default_factory=set)
    cache: dict[tuple[str, int], CacheEntry] = field(default_factory=dict)
    prelude: dict[tuple[str, int], tuple[torch.Tensor | None, ...]] = field(default_factory=dict)
    watched: dict[tuple[str, int], Watched] = field(default_factory=dict)
    weights: dict[str, WeightMarks] = field(default_factory=dict)
    first_runs: dict[str, int] = field(default_factory=dict)
    is_repeated: bool = False
    number: int = 0
    differs_from: Lane | None = None
    _has_two_prompts: bool | None = None
    _last_called: int | None = None

    def called(self, call: Call, step: int, loop: Run | None = None) -> None:
        """Note its last call.

        Args:
            call: the call.
            step: its step.
            loop: the function that loops over the steps, if its lines tell loops apart.
        """
        lines = call.callers.lines
        of_loop = {(run, line) for run, line in self.lines if run is loop}
        if self.lines and loop is not None and of_loop.isdisjoint(lines):
            self.first_reusable_step = step
        self.lines = of_loop | lines
        self.is_repeated = self._last_called == step
        self.step = self._last_called = step
        self.latents = Identity.of(call.latents, remember=False)
        self.place = call.place

    def is_beside(self, call: Call) -> bool:
        """Whether a call of the same step is another one, although it has other latents.

        It is if both have a part of one tensor, latents of another shape, or come from other lines.
        If not, their order alone could tell them apart. They may also be of two videos.
        """
        (site, shape, _, offset), (mine, own, _, start) = call.place, self.place
        if self.latents.shares_memory(call.latents):
            return offset != start
        return shape != own or site != mine

    def has_weights(self, graph: str, weights: Sequence[torch.Tensor], marks_of: MarksOf) -> bool:
        """Whether a graph runs with the tensors of its first run in this lane as weights."""
        if graph not in self.weights:
            self.weights[graph] = marks_of(weights)
        return self.weights[graph].are_same(weights)

    def drop_outdated(self, graph: str, weights: Sequence[torch.Tensor], marks_of: MarksOf) -> bool:
        """Free what a graph computed if its weights changed since.

        Args:
            graph: identity of the graph.
            weights: its weights.
            marks_of: gives the marks of weights as they are now.

        Returns:
            Whether there was something to free.
        """
        known = self.weights.get(graph)
        if known is not None and known.are_unchanged(weights):
            return False
        self.weights[graph] = marks_of(weights)
        outdated = known is not None and any(
            key[0] == graph for part in self._parts() for key in part
        )
        self.free(graph)
        return outdated

    def carries_memory(
        self, prompts: Mapping[str, torch.Tensor], names: Iterable[str] | None = None
    ) -> bool:
        """Whether these are the same tensors as this lane's. Values are not compared.

        Args:
            prompts: per-prompt inputs by name.
            names: which of them count; None counts all, so their number must be the same too.
        """
        return self._compare(prompts, names, Identity.is_same_memory)

    def carries(
        self, prompts: Mapping[str, torch.Tensor], names: Iterable[str] | None = None
    ) -> bool:
        """Whether these per-prompt inputs are this lane's, by identity or by value."""
        return self._compare(prompts, names, Identity.is_same)

    def _compare(
        self,
        prompts: Mapping[str, torch.Tensor],
        names: Iterable[str] | None,
        is_same: Callable[[Identity, torch.Tensor], bool],
    ) -> bool:
        chosen = sorted(self.prompts.keys() | prompts.keys()) if names is None else list(names)
        both = [name for name in chosen if name in prompts and name in self.prompts]
        either = [name for name in chosen if name in prompts or name in self.prompts]
        return both == either and all(is_same(self.prompts[n], prompts[n]) for n in both)

    def agrees(self, other: Lane, ignored: Collection[str] = ()) -> bool:
        """Whether two lanes have equal prompts, apart from some inputs."""
        mine, others = (
            {n: i for n, i in x.items() if n not in ignored} for x in (self.prompts, other.prompts)
        )
        return mine.keys() == others.keys() and all(mine[n].is_equal(others[n]) for n in mine)

    def has_two_prompts(self, num_rows: int) -> bool:
        """Whether the two halves of the rows carry different prompts. They are compared once.

        Args:
            num_rows: rows of the batch.
        """
        if self._has_two_prompts is None:
            rows = [each.seen for each in self.prompts.values()]
            halves = [x.chunk(2) for x in rows if x.ndim and len(x) == num_rows]
            self._has_two_prompts = any(not torch.equal(one, other) for one, other in halves)
        return self._has_two_prompts

    def remember(self, prompts: Mapping[str, torch.Tensor]) -> None:
        """Carry these per-prompt inputs from now on."""
        self._has_two_prompts = None
        self.prompts = {name: Identity.of(prompt) for name, prompt in prompts.items()}

    def free(self, graph: str | None = None) -> None:
        """Free the cache, or the part of one graph."""
        for part in self._parts():
            for key in [key for key in part if graph in (None, key[0])]:
                del part[key]

    def _parts(self) -> Sequence[dict[tuple[str, int], Any]]:
        return self.cache, self.prelude, self.watched

    def cache_bytes(self) -> int:
        """Bytes in cache entries on the device."""
        return self.cache_size().device

    def cache_size(self) -> Size:
        """Bytes in cache entries."""
        return functools.reduce(Size.plus, (each.size() for each in self.cache.values()), Size())

    def prelude_bytes(self) -> int:
        """Bytes of the values that are computed once."""
        tensors = (t for values in self.prelude.values() for t in values if t is not None)
        once = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return once + sum(watched.num_bytes() for watched in self.watched.values())


class Lanes:
    """The lanes of one generation, at most 8 of them that the user did not name.

    Attributes:
        num_opened: number of lanes that were opened so far.
        by_place: whether a step makes several calls with equal prompts and other latents, such as
            windows, tiles or guidance by a picture. Then the place tells lanes apart as well.
        stepping: per-prompt inputs that turned out to change at every step (``stepping``). They do
            not distinguish lanes.
    """

    def __init__(self) -> None:
        self._lanes: list[Lane] = []
        self.num_opened = 0
        self.by_place = False
        self.stepping: frozenset[str] = frozenset()

    def __iter__(self) -> Iterator[Lane]:
        """The lanes, the oldest first."""
        return iter(self._lanes)

    def __len__(self) -> int:
        """Number of open lanes."""
        return len(self._lanes)

    def find(self, call: Call, step: int) -> Lane | None:
        """The lane of a call at a step, or None.

        A named call belongs to the lane of that name. Any other call belongs to the first lane with
        its prompts that was not called at this step yet.
        """
        if call.lane is not None:
            return next((lane for lane in self._lanes if lane.name == call.lane), None)
        call = self.seen(call)
        unnamed = [lane for lane in self._lanes if lane.name is None]
        mine = [lane for lane in unnamed if lane.carries_memory(call.prompts, call.names)]
        mine = mine or [lane for lane in unnamed if lane.carries(call.prompts, call.names)]
        mine = [lane for lane in mine if self.share_place(lane, call)]
        return next((lane for lane in mine if lane.step < step), mine[-1] if mine else None)

    def seen(self, call: Call) -> Call:
        """A call without the inputs that change at every step."""
        return call.without(self.stepping)

    def learn(self, names: Collection[str]) -> None:
        """Note that inputs change at every step. Of lanes that differed in them, keep the last."""
        self.stepping = self.stepping.union(names)
        for lane in self._lanes:
            lane.prompts = {n: i for n, i in lane.prompts.items() if n not in self.stepping}
        outdated = [lane for lane in self._lanes if self._is_outdated(lane)]
        for lane in outdated:
            lane.free()
        self._lanes = [lane for lane in self._lanes if lane not in outdated]
        self.num_opened -= len(outdated)

    def _is_outdated(self, lane: Lane) -> bool:
        """Whether a later lane without a name has the same prompts."""
        return lane.name is None and any(
            other.name is None
            and other.step > lane.step
            and other.agrees(lane)
            and self.share_place(lane, other)
            for other in self._lanes
        )

    def share_place(self, lane: Lane, other: Lane | Call) -> bool:
        """Whether two have the same place, where the place tells lanes apart."""
        return not self.by_place or lane.place == other.place

    def open(self, call: Call, step: int) -> tuple[Lane, bool]:
        """Add a lane for a call.

        Returns:
            The lane, and whether the oldest lane without a name was dropped for it.
        """
        unnamed = [lane for lane in self._lanes if lane.name is None]
        limit = MAX_LANES * (_MAX_PLACES if self.by_place else 1)
        is_full = call.lane is None and len(unnamed) >= limit
        if is_full:
            unnamed[0].free()
            self._lanes.remove(unnamed[0])
        latents = Identity.of(call.latents, remember=False)
        lane = Lane(call.lane, {}, latents, call.place, step, step, number=self.num_opened)
        lane.remember(self.seen(call).prompts)
        self.num_opened += 1
        self._lanes.append(lane)
        return lane, is_full

    def close(self, lane: Lane, graph: str) -> None:
        """Free the cache that a graph has in a lane after its last step."""
        lane.free(graph)
        self._lanes = [other for other in self._lanes if other is not lane]

    def free(self) -> None:
        """Close all lanes and free their caches."""
        for lane in self._lanes:
            lane.free()
        self._lanes.clear()
