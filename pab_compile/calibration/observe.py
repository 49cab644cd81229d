"""``observe``: run a model without reuse, and record how the outputs of its sites change.

Meanwhile every graph computes everything. It has a probe at every site and at its outputs
(``passes.rewrite.probes``). The memory on the device does not depend on the size of the video. Per
lane there are samples of every site at the last ``MAX_LAG`` steps, and of the outputs at all steps.
Per step there are 25 numbers per site. Nothing is read from the device before the end.

If the forward breaks into several graphs, the outputs of the last graph count as the model's.
"""

from __future__ import annotations

import contextvars
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pab_compile.denoisers import is_pipeline
from pab_compile.dynamo import why_uncompiled
from pab_compile.errors import ObservationError
from pab_compile.passes.sites.site import Site
from pab_compile.runtime.generation import Place
from pab_compile.runtime.lane import Lane
from pab_compile.runtime.whose import Named, Whose

from .observation import MAX_LAG, Observation, ObservedRun, ObservedSite

_SEVERAL = (
    "Several models ran in the call. Say which one to observe, as in "
    "pab_compile.observe(call, model=pipe.transformer)."
)


def observe(call: Callable[[], Any], *, model: Any = None, num_samples: int = 4096) -> Observation:
    """Run whole generations without reuse and compare all outputs between the steps.

    Args:
        call: runs one or more generations with the same number of steps, as in
            ``lambda: pipe(prompt)``. The model is compiled with ``backend="pab"``. The result of
            the call is not used.
        model: the compiled model to observe, if several run. A compiled function is understood too.
        num_samples: most elements to compare, of the output of a site and of the model. For larger
            outputs the numbers are estimates (see ``passes.rewrite.probes``).

    Returns:
        The observation of all generations and lanes.

    Raises:
        ObservationError: nothing ran that can be observed, or several models or numbers of steps.
    """
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ObservationError(f"num_samples={num_samples!r} is not an integer of at least 1.")
    if is_pipeline(call) or isinstance(call, torch.nn.Module) or not callable(call):
        raise ObservationError(
            f"observe got a {type(call).__name__}. It takes a function that runs generations: "
            "pab_compile.observe(lambda: pipe(prompt)), with model=pipe.transformer if several run."
        )
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
        sites: one per probe, in order. One more probe is that of the graph's outputs.
        num_probes: number of last outputs that are samples.
        cut: the option ``cut``.
        coalesce: the option ``coalesce``.
        kept_bytes: bytes in the cache if all sites are reused together with order 0.
        total_flops: floating point operations of the graph.
    """

    graph: str
    sites: tuple[Site, ...]
    num_probes: int
    cut: str
    coalesce: bool
    kept_bytes: int
    total_flops: int


@dataclass(eq=False)
class _Track:
    """Samples and products of one graph in one lane.

    Attributes:
        ring: samples of the last steps. Step ``s`` is at ``s % len(ring)``. None after the lane.
        counts: number of samples per site.
        steps: the step of each position in the ring.
        products: step -> ``[sites, 1 + MAX_LAG]`` on the device.
        outputs: step -> samples of the graph's outputs; empty after the lane.
        gram: mean products of the outputs, in order of the steps; None before the end of the lane.
    """

    ring: torch.Tensor | None
    counts: torch.Tensor
    steps: list[int | None] = field(default_factory=lambda: [None] * (MAX_LAG + 1))
    products: dict[int, torch.Tensor] = field(default_factory=dict)
    outputs: dict[int, torch.Tensor] = field(default_factory=dict)
    gram: torch.Tensor | None = None

    def add(self, step: int, samples: Sequence[torch.Tensor], outputs: torch.Tensor | None) -> None:
        """Compare a step's samples with those of the steps before."""
        assert self.ring is not None
        if outputs is not None:
            self.outputs[step] = outputs
        place = step % len(self.ring)
        self.steps[place] = step
        for site, sample in enumerate(samples):
            self.ring[place, site, : len(sample)] = sample
        # In double precision, since errors are small differences of large products.
        now = self.ring[place].double()
        lagged = []
        for lag in range(len(self.ring)):
            other = (step - lag) % len(self.ring)
            if self.steps[other] == step - lag:
                lagged.append((self.ring[other] * now).sum(-1) / self.counts)
            else:
                lagged.append(torch.full_like(self.counts, math.nan))
        self.products[step] = torch.stack(lagged, dim=-1)

    def finish(self) -> None:
        """Nothing will be added: free the samples."""
        self.ring = None
        if self.outputs:
            values = torch.stack([self.outputs[step] for step in sorted(self.outputs)]).double()
            gram = values @ values.T / values.shape[1]
            self.gram = (gram + gram.T) / 2  # symmetric to the last bit
            self.outputs.clear()

    def output_products(self, num_steps: int) -> torch.Tensor:
        """``[steps, steps]`` on the CPU; NaN where the outputs of a step are unknown."""
        found = torch.full((num_steps, num_steps), math.nan, dtype=torch.float64)
        if self.gram is not None:
            known = torch.tensor(sorted(self.products))
            found[known[:, None], known] = self.gram.cpu()
        return found


@dataclass(eq=False)
class _Run:
    """One lane of one generation."""

    generation: int
    lane: str
    alive: weakref.ref[Lane]
    tracks: dict[str, _Track] = field(default_factory=dict)
    timesteps: dict[int, float | None] = field(default_factory=dict)

    def finish(self) -> None:
        """The lane is over: free the samples."""
        for track in self.tracks.values():
            track.finish()


class Observer:
    """Collects what probes return while ``observe`` runs.

    Attributes:
        num_samples: see ``observe``.
    """

    def __init__(self, num_samples: int, model: Any) -> None:
        self.num_samples = num_samples
        self._named = None if model is None else Named.of(model)
        self._graphs: dict[str, Probed] = {}
        self._weights: dict[str, int] = {}
        self._runs: list[_Run] = []
        self._generations: list[weakref.ref[Any]] = []
        self._unplaced: dict[str, None] = {}

    def record(
        self,
        probed: Probed,
        place: Place | None,
        identity: Sequence[object],
        samples: Sequence[torch.Tensor],
    ) -> None:
        """Record what the probes of one graph returned in one call.

        Args:
            probed: what they are samples of.
            place: where the call belongs. A call without a place is left out.
            identity: the weights of the graph, or what was called. They identify the model.
            samples: float32, one tensor of shape ``[samples]`` per probe.
        """
        samples, rest = samples[: len(probed.sites)], samples[len(probed.sites) :]
        if self._named is not None and not Whose.running(identity).is_of(self._named):
            return
        if place is None or not place.generation.trusted:
            notes = place.generation.record.notes if place is not None else ()
            self._unplaced |= dict.fromkeys(notes or ["a call has no place in a generation"])
            return
        self._graphs.setdefault(probed.graph, probed)
        if self._weights.setdefault(probed.graph, id(identity[0])) != id(identity[0]):
            raise ObservationError(_SEVERAL)
        run = self._run_of(place)
        step = place.generation.step
        run.timesteps[step] = place.generation.timestep_now
        if probed.graph not in run.tracks:
            longest = max(map(len, samples))
            ring = samples[0].new_zeros(MAX_LAG + 1, len(samples), longest)
            counts = torch.tensor([len(sample) for sample in samples], dtype=torch.float64)
            run.tracks[probed.graph] = _Track(ring, counts.to(ring.device, non_blocking=True))
        run.tracks[probed.graph].add(step, samples, rest[0] if rest else None)

    def result(self) -> Observation:
        """The observation, moved to the CPU.

        Raises:
            ObservationError: nothing ran, or several models or numbers of steps.
        """
        if not self._runs:
            nothing = "no step of a model compiled with backend='pab' ran"
            if off := why_uncompiled():
                nothing += f", since compilation is switched off: {off}"
            why = "; ".join(self._unplaced) or nothing
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
                f"The generations have {sorted(set(lengths))} steps. Observe one number of steps."
            )
        num_steps = lengths[0]
        first = {k: v for run in reversed(self._runs) for k, v in run.timesteps.items()}
        sites = [site for probed in self._graphs.values() for site in probed.sites]
        for run in self._runs:
            run.finish()
        *_, last = self._graphs.values()
        return Observation(
            sites=tuple(
                ObservedSite(site.name, site.kind, site.module, site.cache_bytes, site.flops)
                for site in sites
            ),
            runs=tuple(ObservedRun(run.generation, run.lane) for run in self._runs),
            timesteps=tuple(first.get(step) for step in range(num_steps)),
            cut=last.cut,
            coalesce=last.coalesce,
            kept_bytes=sum(probed.kept_bytes for probed in self._graphs.values()),
            total_flops=sum(probed.total_flops for probed in self._graphs.values()),
            num_samples=self.num_samples,
            products=torch.stack([self._products(run, num_steps) for run in self._runs]),
            outputs=torch.stack(
                [run.tracks[last.graph].output_products(num_steps) for run in self._runs]
            ),
        )

    def _products(self, run: _Run, num_steps: int) -> torch.Tensor:
        """``[sites, steps, 1 + MAX_LAG]`` of one run; NaN at steps without a call."""
        parts = []
        for graph in self._graphs:
            products = run.tracks[graph].products
            missing = torch.full_like(next(iter(products.values())), math.nan)
            known = [products.get(step, missing) for step in range(num_steps)]
            parts.append(torch.stack(known, dim=1).cpu())
        return torch.cat(parts)

    def _run_of(self, place: Place) -> _Run:
        for run in self._runs:
            if run.alive() is place.lane:
                return run
            if run.alive() is None:
                run.finish()
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
