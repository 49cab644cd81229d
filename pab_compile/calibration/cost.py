"""Cost: the cost of steps, in the unit in which a plan's speed-up is counted.

If all sites do the same at a step, there are two sorts of steps: those that compute and those that
reuse. A step that reuses still costs embeddings, predictions, the last layer and the sampler.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pab_compile.errors import CalibrationError
from pab_compile.runtime.last_runs import last_generation
from pab_compile.runtime.stats import StepRecord, step_seconds

from .observation import Observation
from .stopwatch import now, waiting_for_the_device


@dataclass(frozen=True)
class Cost:
    """The cost of the two sorts of steps of a generation.

    Attributes:
        computed: cost of a step at which all sites compute.
        reused: cost of a step at which all sites reuse.
        unit: the unit of both, for messages and files.
        num_computed: ``computed`` is the median of this many steps; 0 if it was not measured.
        num_reused: ``reused`` is the median of this many steps; 0 if it was not measured.
    """

    computed: float
    reused: float
    unit: str = "FLOPs"
    num_computed: int = 0
    num_reused: int = 0

    def __post_init__(self) -> None:
        """Raise ``CalibrationError`` if reuse costs as much as computing."""
        if not 0 <= self.reused < self.computed < math.inf:
            raise CalibrationError(
                f"A step that computes takes {self.computed:g} {self.unit} and one that reuses "
                f"{self.reused:g}. Reuse saves nothing unless the first one takes more."
            )

    @property
    def spared(self) -> float:
        """The share of the cost of a step that reuse saves."""
        return 1 - self.reused / self.computed

    def speedup(self, num_computed: int, num_steps: int) -> float:
        """Cost of a generation without reuse, divided by the cost with this many computed steps."""
        spent = num_computed * self.computed + (num_steps - num_computed) * self.reused
        return num_steps * self.computed / spent


def flops_cost(observation: Observation) -> Cost:
    """Floating point operations of the observed model. Only contractions count."""
    spared = sum(site.flops for site in observation.sites)
    total = max(observation.total_flops, spared)
    return Cost(total, total - spared)


def measure_cost(call: Callable[[], Any], observation: Observation, model: torch.nn.Module) -> Cost:
    """Median seconds of the steps that compute, and of those that reuse.

    A step lasts until the next one starts. So it contains all calls of the model, and what the
    pipeline does between them. The host waits for the accelerator at the start of every call. The
    first step does not count, since it may compile. The last step does not count, since it has no
    next one.

    Args:
        call: runs a generation with a plan that reuses all sites at some steps. Such plans are
            ``linear3``, or a plan that was calibrated in FLOPs. Of several generations the last one
            counts.
        observation: of the model. It says which sites the model has.
        model: the compiled model.

    Raises:
        CalibrationError: no step that computed all sites was timed, or none that reused them.
    """
    begin = now()
    with waiting_for_the_device():
        call()
    records = last_generation(model, "No step was timed").running.record.calls
    return _medians([record for record in records if record.started >= begin], observation)


def _medians(records: Sequence[StepRecord], observation: Observation) -> Cost:
    everything = Counter(site.kind for site in observation.sites)
    computed, reused = [], []
    for step, seconds in list(step_seconds(records).items())[1:]:
        calls = [record for record in records if record.step == step]
        if not any(record.reused.total() for record in calls):
            computed.append(seconds)
        elif all(record.reused == everything for record in calls):
            reused.append(seconds)
    if not computed or not reused:
        raise CalibrationError(
            f"Of the steps between the first and the last, {len(computed)} computed all and "
            f"{len(reused)} reused all of the {len(observation.sites)} observed sites. Both sorts "
            "are needed. Run a whole generation of several steps with a plan that does both, such "
            'as options={"ranges": "linear3"}, or a calibrated plan.'
        )
    medians = statistics.median(computed), statistics.median(reused)
    return Cost(*medians, "seconds", len(computed), len(reused))
