"""Generations and lanes: whose cached outputs a call may use.

A *generation* is one video being denoised. A *lane* is one of the calls that a pipeline makes per
step (conditional, unconditional, ...), told apart by the prompt it carries: counting calls alone
mixes lanes as soon as guidance is switched off half-way. Whatever does not add up starts afresh and
computes; a generation whose calls may belong to two videos is not trusted and computes throughout.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from pab_compile.plans.decisions import Decisions
from pab_compile.plans.schedule import Schedule

from .cache_entry import Slot
from .clock import Reading, TimestepTable, version_of
from .recall import Timesteps
from .stats import RunStats, StepRecord, summarise

_MAX_LANES = 8


@dataclass(frozen=True, eq=False)
class Identity:
    """Which tensor this is: its memory, its version, its layout.

    Holds the tensor, so that its memory cannot be handed to another one. Inference tensors carry no
    version, so a copy of them is held and compared instead.
    """

    tensor: torch.Tensor
    copy: torch.Tensor | None
    key: tuple[object, ...]

    @staticmethod
    def of(tensor: torch.Tensor, *, remember: bool = True) -> Identity:
        """The identity of a tensor as it is now."""
        key = (tensor.data_ptr(), version_of(tensor), tensor.shape, tensor.stride(), tensor.dtype)
        copy = tensor.clone() if remember and tensor.is_inference() else None
        return Identity(tensor, copy, key)

    def is_same(self, other: torch.Tensor) -> bool:
        """Whether a tensor is this one unchanged, or equal to it in value.

        Comparing values synchronises an accelerator; it happens only when the memory differs.
        """
        if self.copy is None and Identity.of(other, remember=False).key == self.key:
            return True
        if self.copy is None and version_of(self.tensor) != self.key[1]:
            return False
        mine = self.tensor if self.copy is None else self.copy
        return (
            mine.shape == other.shape
            and mine.dtype == other.dtype
            and mine.device == other.device
            and torch.equal(mine, other)
        )

    def is_same_memory(self, other: torch.Tensor) -> bool:
        """Whether a tensor is this one unchanged, without comparing values."""
        return self.copy is None and Identity.of(other, remember=False).key == self.key


@dataclass(eq=False)
class Lane:
    """One of the calls per step, with its slots and its prelude.

    Attributes:
        name: as the user named it (``step(lane=...)``), or None.
        prompts: the per-prompt inputs that it carries.
        slots: (graph, site) -> slot.
        prelude: (graph, piece) -> values computed once for this lane.
        weights: graph -> the weights that it ran with.
    """

    name: str | None
    prompts: dict[str, Identity]
    latents: Identity
    step: int
    slots: dict[tuple[str, int], Slot] = field(default_factory=dict)
    prelude: dict[tuple[str, int], tuple[torch.Tensor | None, ...]] = field(default_factory=dict)
    weights: dict[str, tuple[weakref.ref[torch.Tensor], ...]] = field(default_factory=dict)

    def has_weights(self, graph: str, weights: Sequence[torch.Tensor]) -> bool:
        """Whether a graph runs with the weights that it ran with first in this lane."""
        if graph not in self.weights:
            self.weights[graph] = tuple(map(weakref.ref, weights))
        pairs = zip(self.weights[graph], weights, strict=True)
        return all(mine() is weight for mine, weight in pairs)

    def carries_memory(
        self, prompts: Mapping[str, torch.Tensor], names: Iterable[str] | None = None
    ) -> bool:
        """Whether these are the very tensors that this lane carries; looks at no values.

        Args:
            prompts: per-prompt inputs by name.
            names: which of them count; None counts all, so that their number must fit too.
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

    def free(self, graph: str | None = None) -> None:
        """Let go of every tensor, or of those of one graph."""
        for held in (self.slots, self.prelude):
            for key in [key for key in held if graph in (None, key[0])]:
                del held[key]

    def num_bytes(self) -> int:
        """Bytes in slots."""
        return sum(slot.num_bytes() for slot in self.slots.values())


@dataclass(frozen=True)
class Call:
    """One call of a compiled model, as the clock sees it.

    Attributes:
        reading: what the timestep says; None under explicit control.
        latents: the tensor being denoised.
        prompts: the per-prompt inputs by name.
        names: which of them tell one lane from another; None for all.
        is_hidden: whether Python code between graphs may bring in conditions that are not here.
        lane: name of the lane, if the user gave one.
        index: step given by the user, or None.
        schedule: schedule given by the user, or None.
    """

    reading: Reading
    latents: torch.Tensor
    prompts: Mapping[str, torch.Tensor]
    names: tuple[str, ...] | None = None
    is_hidden: bool = False
    lane: str | None = None
    index: int | None = None
    schedule: Schedule | None = None


@dataclass(frozen=True, eq=False)
class Place:
    """Where one call of the model belongs, and what it did: shared by the graphs that it runs."""

    generation: Generation
    lane: Lane
    record: StepRecord


class Generation:
    """One video being denoised by one model."""

    def __init__(self, call: Call, trusted: bool = True) -> None:
        reading = call.reading
        self.origin = reading.index or 0
        self.step = call.index or 0
        self.first_timestep = 0.0 if reading.value is None else reading.value
        self.timestep = reading.value
        self.table: TimestepTable | None = reading.table
        self.schedule = call.schedule or _schedule_of(reading)
        self.recalled: list[Timesteps] = []
        self.trusted = trusted
        self.notes: list[str] = []
        self.lanes: list[Lane] = []
        self.decisions: dict[str, Decisions] = {}
        self.records: list[StepRecord] = []
        self.num_lanes = 0
        self.peak_cache_bytes = 0
        self.held_bytes = 0
        self.compilers: dict[int, tuple[int, float]] = {}
        self.seen: list[float] = [] if reading.value is None else [reading.value]
        self.closed = False

    def note(self, text: str) -> None:
        """Say once why something was computed."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def first_reusable_step(self) -> int:
        """Earliest step whose outputs may be reused.

        Without a schedule the first call may have been a lone one (a warm-up), so what it computed
        is not trusted to belong to the calls after it.
        """
        return 0 if self.schedule.is_known else 1

    @property
    def timestep_now(self) -> float | None:
        """Timestep of the current step: by the schedule, else as it was read; None if unknown."""
        scheduled = self.schedule.timesteps or ()
        return scheduled[self.step] if self.step < len(scheduled) else self.timestep

    @property
    def is_last_step(self) -> bool:
        """Whether the current step is known to be the last."""
        return self.schedule.num_steps is not None and self.step >= self.schedule.num_steps - 1

    @property
    def is_nearly_done(self) -> bool:
        """Whether at most one step is left; a table may have an entry more than there are steps."""
        return self.schedule.num_steps is not None and self.step >= self.schedule.num_steps - 2

    def recall(self, schedules: list[Timesteps]) -> None:
        """Take note of the schedules that this generation may follow; one alone is believed."""
        believed = Schedule(len(schedules[0]), schedules[0]) if len(schedules) == 1 else Schedule()
        self.recalled = schedules
        if believed != self.schedule:
            self.schedule = believed
            self.decisions.clear()

    def advance(self, step: int, reading: Reading) -> None:
        """Move on to the next step."""
        self.step = step
        self.timestep = reading.value
        if reading.value is not None:
            self.seen.append(reading.value)

    def find_lane(self, call: Call) -> Lane | None:
        """The lane of a call: by name, else the first with its prompts not yet called this step."""
        if call.lane is not None:
            return next((lane for lane in self.lanes if lane.name == call.lane), None)
        unnamed = [lane for lane in self.lanes if lane.name is None]
        mine = [lane for lane in unnamed if lane.carries_memory(call.prompts, call.names)]
        mine = mine or [lane for lane in unnamed if lane.carries(call.prompts, call.names)]
        return next((lane for lane in mine if lane.step < self.step), mine[-1] if mine else None)

    def open_lane(self, call: Call) -> Lane:
        """Add a lane for a call."""
        if len(self.lanes) >= _MAX_LANES:
            self.lanes.pop(0).free()
            self.notes.append(
                "the per-prompt inputs differ at every call, so nothing can be reused: state those "
                'that change with the step as options={"axes": {"<input>": "step"}}'
            )
        prompts = {name: Identity.of(prompt) for name, prompt in call.prompts.items()}
        latents = Identity.of(call.latents, remember=False)
        self.num_lanes += 1
        self.lanes.append(Lane(call.lane, prompts, latents, self.step))
        return self.lanes[-1]

    def close_lane(self, lane: Lane, graph: str) -> None:
        """Free what one graph holds in a lane that does its last step."""
        lane.free(graph)
        self.lanes = [other for other in self.lanes if other is not lane]

    def free(self) -> None:
        """Close the generation and let go of every tensor."""
        for lane in self.lanes:
            lane.free()
        self.lanes.clear()
        self.table = None
        self.closed = True

    def measure(self) -> None:
        """Take note of the bytes that are held now."""
        cached = sum(lane.num_bytes() for lane in self.lanes)
        self.peak_cache_bytes = max(self.peak_cache_bytes, cached)
        held = sum(
            t.numel() * t.element_size()
            for lane in self.lanes
            for values in lane.prelude.values()
            for t in values
            if t is not None
        )
        self.held_bytes = max(self.held_bytes, held)

    def stats(self) -> RunStats:
        """Statistics of the steps so far."""
        kinds = dict.fromkeys(kind for record in self.records for kind in record.kinds)
        notes = list(self.notes)
        if not notes and self.is_last_step and not any(record.reused for record in self.records):
            notes.append(
                f"nothing was reused: the plan computes every site at each of the "
                f"{self.schedule.num_steps} steps; few-step schedules leave little to gain"
            )
        return summarise(
            self.records,
            tuple(kinds),
            lanes=self.num_lanes,
            peak_cache_bytes=self.peak_cache_bytes,
            held_bytes=self.held_bytes,
            num_pieces=sum(pieces for pieces, _ in self.compilers.values()),
            compile_seconds=sum(seconds for _, seconds in self.compilers.values()),
            notes=notes,
        )


def _schedule_of(reading: Reading) -> Schedule:
    if reading.table is None:
        return Schedule()
    timesteps = reading.table.values[reading.index or 0 :]
    return Schedule(len(timesteps), timesteps)
