"""``observe``: run a model as it is and take note of how its sites' outputs change.

While it runs, every graph computes everything, and has a probe at every site (``passes.probes``).
What is held on the device does not depend on the size of the video: per lane the samples of the
last ``MAX_LAG`` steps, and per step 25 numbers of every site. Nothing is read from the device
before the end.
"""

from __future__ import annotations

import contextvars
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pab_compile.passes.sites import Site
from pab_compile.passes.wrapped import plain_tensors

from .generation import Lane, Place
from .observation import MAX_LAG, Observation, ObservationError, ObservedRun, ObservedSite

_SEVERAL = (
    "Several models ran in the call: say which one to observe, as in "
    "pab_compile.observe(call, model=pipe.transformer)."
)


def observe(
    call: Callable[[], Any], *, model: torch.nn.Module | None = None, num_samples: int = 4096
) -> Observation:
    """Run whole generations without reuse and compare every site's outputs between the steps.

    Args:
        call: runs one or several generations of equally many steps, with a model that was compiled
            with ``backend="pab"``: ``lambda: pipe(prompt)``. Its result is dropped.
        model: the compiled model to observe, where several run.
        num_samples: most elements of a site's output that are compared. Of smaller outputs all are,
            and the numbers are exact; otherwise they are estimates (see ``passes.probes``).

    Returns:
        The observation; over all generations and lanes.

    Raises:
        ObservationError: nothing ran that could be observed, or what ran does not belong together.
    """
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ObservationError(f"num_samples={num_samples!r}: an integer of at least 1.")
    observer = Observer(num_samples, model)
    token = _current.set(observer)
    try:
        call()
    finally:
        _current.reset(token)
    return observer.result()


@dataclass(frozen=True)
class Probed:
    """What the last outputs of a graph are samples of.

    Attributes:
        graph: hash of the graph.
        sites: one per output.
        cut: the option ``cut``.
    """

    graph: str
    sites: tuple[Site, ...]
    cut: str


@dataclass(eq=False)
class _Track:
    """Samples and products of one graph in one lane.

    Attributes:
        ring: samples of the last steps, step ``s`` in row ``s % len(ring)``; freed with the lane.
        steps: the step that each row is of.
        products: step -> ``[sites, 1 + MAX_LAG]`` on the device.
    """

    ring: torch.Tensor | None
    counts: torch.Tensor
    steps: list[int | None] = field(default_factory=lambda: [None] * (MAX_LAG + 1))
    products: dict[int, torch.Tensor] = field(default_factory=dict)

    def add(self, step: int, samples: Sequence[torch.Tensor]) -> None:
        """Compare a step's samples with those of the steps before."""
        assert self.ring is not None
        row = step % len(self.ring)
        self.steps[row] = step
        for site, sample in enumerate(samples):
            self.ring[row, site, : len(sample)] = sample
        # In double precision: errors are small differences of large products.
        now = self.ring[row].double()
        lagged = []
        for lag in range(len(self.ring)):
            other = (step - lag) % len(self.ring)
            if self.steps[other] == step - lag:
                lagged.append((self.ring[other] * now).sum(-1) / self.counts)
            else:
                lagged.append(torch.full_like(self.counts, math.nan))
        self.products[step] = torch.stack(lagged, dim=-1)


@dataclass(eq=False)
class _Run:
    """One lane of one generation."""

    generation: int
    lane: str
    alive: weakref.ref[Lane]
    tracks: dict[str, _Track] = field(default_factory=dict)
    timesteps: dict[int, float | None] = field(default_factory=dict)


class Observer:
    """Collects what probes return while ``observe`` runs.

    Attributes:
        num_samples: see ``observe``.
    """

    def __init__(self, num_samples: int, model: torch.nn.Module | None) -> None:
        self.num_samples = num_samples
        self._own: set[int] | None = None
        if model is not None:
            held = (*model.parameters(), *model.buffers())
            self._own = {id(plain) for tensor in held for _, plain in plain_tensors(tensor)}
        self._graphs: dict[str, Probed] = {}
        self._weights: dict[str, int] = {}
        self._runs: list[_Run] = []
        self._generations: list[weakref.ref[Any]] = []
        self._unplaced: dict[str, None] = {}

    def record(
        self,
        probed: Probed,
        place: Place | None,
        weights: Sequence[torch.Tensor],
        samples: Sequence[torch.Tensor],
    ) -> None:
        """Take note of what the probes of one graph returned in one call.

        Args:
            probed: what they are samples of.
            place: where the call belongs; a call that belongs nowhere is left out.
            weights: of the graph, to tell models apart.
            samples: float32, one tensor of shape ``[samples]`` per site.
        """
        if self._own is not None and not self._own.issuperset(map(id, weights)):
            return
        if place is None or not place.generation.trusted:
            notes = place.generation.notes if place is not None else ()
            self._unplaced |= dict.fromkeys(notes or ["a call has no place in a generation"])
            return
        self._graphs.setdefault(probed.graph, probed)
        if self._weights.setdefault(probed.graph, id(weights[0])) != id(weights[0]):
            raise ObservationError(_SEVERAL)
        run = self._run_of(place)
        step = place.generation.step
        run.timesteps[step] = place.generation.timestep_now
        if probed.graph not in run.tracks:
            longest = max(map(len, samples))
            ring = samples[0].new_zeros(MAX_LAG + 1, len(samples), longest)
            counts = torch.tensor([len(sample) for sample in samples], dtype=torch.float64)
            run.tracks[probed.graph] = _Track(ring, counts.to(ring.device, non_blocking=True))
        run.tracks[probed.graph].add(step, samples)

    def result(self) -> Observation:
        """The observation, moved to the CPU.

        Raises:
            ObservationError: nothing ran, or what ran does not belong together.
        """
        if not self._runs:
            why = "; ".join(self._unplaced) or "no step of a model compiled with backend='pab' ran"
            raise ObservationError(f"Nothing was observed: {why}.")
        if any(run.tracks.keys() != self._graphs.keys() for run in self._runs):
            raise ObservationError(_SEVERAL)
        numbers = dict.fromkeys(run.generation for run in self._runs)
        lengths = [
            1 + max(max(run.timesteps) for run in self._runs if run.generation == number)
            for number in numbers
        ]
        if len(set(lengths)) > 1:
            raise ObservationError(
                f"The generations have {sorted(set(lengths))} steps: observe one number at a time."
            )
        num_steps = lengths[0]
        first = {k: v for run in reversed(self._runs) for k, v in run.timesteps.items()}
        sites = [site for probed in self._graphs.values() for site in probed.sites]
        return Observation(
            sites=tuple(
                ObservedSite(site.name, site.kind, site.module, site.cache_bytes, site.flops)
                for site in sites
            ),
            runs=tuple(ObservedRun(run.generation, run.lane) for run in self._runs),
            timesteps=tuple(first.get(step) for step in range(num_steps)),
            cut=next(iter(self._graphs.values())).cut,
            num_samples=self.num_samples,
            products=torch.stack([self._products(run, num_steps) for run in self._runs]),
        )

    def _products(self, run: _Run, num_steps: int) -> torch.Tensor:
        """``[sites, steps, 1 + MAX_LAG]`` of one run, NaN at steps at which it was not called."""
        parts = []
        for graph in self._graphs:
            products = run.tracks[graph].products
            missing = torch.full_like(next(iter(products.values())), math.nan)
            rows = [products.get(step, missing) for step in range(num_steps)]
            parts.append(torch.stack(rows, dim=1).cpu())
        return torch.cat(parts)

    def _run_of(self, place: Place) -> _Run:
        for run in self._runs:
            if run.alive() is place.lane:
                return run
            if run.alive() is None:
                for track in run.tracks.values():
                    track.ring = None
        known = [ref() for ref in self._generations]
        if place.generation not in known:
            self._generations.append(weakref.ref(place.generation))
        number = [ref() for ref in self._generations].index(place.generation)
        lane = place.lane.name
        if lane is None:
            lane = str(sum(run.generation == number for run in self._runs))
        self._runs.append(_Run(number, lane, weakref.ref(place.lane)))
        return self._runs[-1]


_current: contextvars.ContextVar[Observer | None] = contextvars.ContextVar("observer", default=None)


def current_observer() -> Observer | None:
    """The observer of the running code, or None."""
    return _current.get()
