"""Pyramid Attention Broadcast for video diffusion transformers, as a torch.compile backend.

``torch.compile(model, backend="pab")`` is all it takes; the rest is for looking inside and for
explicit control. Paper: Real-Time Video Generation with Pyramid Attention Broadcast,
arXiv 2408.12588.
"""

from __future__ import annotations

from .board import stats
from .calibrate import Calibration, calibrate, predicted_error
from .comm import CommReport, comm
from .cost import Cost, measure_cost, wire_cost
from .errors import (
    CalibrationError,
    GradModeError,
    InvariantError,
    ObservationError,
    OptionError,
    PabError,
    PlanError,
    RanksError,
    ShardingError,
    UnsupportedModelError,
)
from .explain import explain
from .least_traffic import least_traffic
from .observation import Observation, load_observation
from .observe import observe
from .options import Options
from .report import Explanation, SiteReport
from .scaling import Link, Machine, Scaling, scaling
from .schedule import Schedule
from .scope import generation, reset, step
from .stats import RunStats

__all__ = [
    "Calibration",
    "CalibrationError",
    "CommReport",
    "Cost",
    "Explanation",
    "GradModeError",
    "InvariantError",
    "Link",
    "Machine",
    "Observation",
    "ObservationError",
    "OptionError",
    "Options",
    "PabError",
    "PlanError",
    "RanksError",
    "RunStats",
    "Scaling",
    "Schedule",
    "ShardingError",
    "SiteReport",
    "UnsupportedModelError",
    "calibrate",
    "comm",
    "explain",
    "generation",
    "least_traffic",
    "load_observation",
    "measure_cost",
    "observe",
    "predicted_error",
    "reset",
    "scaling",
    "stats",
    "step",
    "wire_cost",
]
