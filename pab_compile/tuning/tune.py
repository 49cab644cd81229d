"""``tune``: the plan to use, found by running generations or from an observation of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from pab_compile.calibration.calibrate import Calibration, from_observation
from pab_compile.calibration.cost import Cost
from pab_compile.calibration.observation import Observation

from .from_generations import from_generations
from .rehearsal import Generate
from .tuned import Tuned


@overload
def tune(
    source: Generate,
    prompts: Sequence[Any],
    *,
    model: Any,
    num_steps: int,
    computed: int | None = None,
    speedup: float | None = None,
    teacher: Literal["same", "converged"] = "same",
    rounds: int = 1,
    budget: float = 60,
    steps: Sequence[int] | None = None,
    half_steps: Sequence[int] = (),
    guidance: bool | None = None,
    held_out: int | None = None,
    teacher_steps: int | None = None,
    axes: Mapping[str, str] | None = None,
    resume: str | Path | None = None,
    progress: bool | None = None,
) -> Tuned: ...


@overload
def tune(
    source: Observation,
    *,
    speedup: float | None = None,
    max_error: float | None = None,
    max_cache_bytes: int | None = None,
    max_order: int = ...,
    max_distance: int = 8,
    predict_in: Literal["step", "timestep"] = "step",
    cost: Cost | None = None,
) -> Calibration: ...


def tune(source: Generate | Observation, *given: Any, **options: Any) -> Tuned | Calibration:
    """Find a plan.

    With a function that generates, the plan is fitted and judged by running generations. See
    ``tuning.from_generations`` for all arguments::

        tune(generate, prompts, model=pipe.transformer, num_steps=30, computed=10)

    With an observation, the plan of least predicted error is searched, without a run. It keeps to
    the cuts that were observed, and fits any number of steps. See ``calibration.calibrate``::

        tune(observation, speedup=2.5)

    Args:
        source: ``generate(prompt, num_steps)``, which runs one whole generation, or what
            ``observe`` returned.
        given: the prompts, for a function.
        options: as in the examples.

    Returns:
        A plan with its quality on prompts that were held out; or a plan with its predicted error.

    Raises:
        CalibrationError: no plan meets the request, or generations cannot be compared. The message
            says what was found.
    """
    if isinstance(source, Observation):
        return from_observation(source, *given, **options)
    return from_generations(source, *given, **options)
