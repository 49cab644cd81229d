"""Errors that users can meet; all derive from ``PabError``."""

from __future__ import annotations

from pab_compile.passes.errors import InvariantError, PabError, ShardingError, UnsupportedModelError

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


class PlanError(PabError, ValueError):
    """A plan that cannot be used, with what was found in it."""


class RanksError(PabError, RuntimeError):
    """The ranks of a mesh cannot run a model together, or disagree about how."""


class CalibrationError(PabError, ValueError):
    """No plan does what is asked, or there is nothing to choose by, with what was found."""


class ObservationError(PabError, ValueError):
    """An observation that cannot be made or read, with what was found."""


class OptionError(PabError, ValueError):
    """An option that is unknown or has a value outside its domain."""
