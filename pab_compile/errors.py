"""Errors that users can meet; all derive from ``PabError``."""

from __future__ import annotations

from pab_compile.passes.errors import InvariantError, PabError, UnsupportedModelError
from pab_compile.passes.parallel.layout import ShardingError

from .cost import CalibrationError
from .mesh import RanksError
from .observation import ObservationError
from .options import OptionError
from .plan import PlanError

__all__ = [
    "CalibrationError",
    "GradModeError",
    "InvariantError",
    "ObservationError",
    "OptionError",
    "PabError",
    "PlanError",
    "RanksError",
    "ShardingError",
    "UnsupportedModelError",
]


class GradModeError(PabError, RuntimeError):
    """The model was called with gradients enabled and weights or inputs that need them."""
