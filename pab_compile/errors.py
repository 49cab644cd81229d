"""The errors that this library raises. All derive from ``PabError``."""

from __future__ import annotations

from pab_compile.passes.errors import (
    InvariantError,
    PabError,
    ShardingError,
    UnsupportedModelError,
)

OFFER = (
    "Or reuse the model's whole output, for which nothing but latents and timestep must be known: "
    'options={"ranges": "linear3", "cut": "output"}.'
)
"""What an error says at its end, where a model that is refused would run so (``compile.floor``)."""

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
    """A plan cannot be used. The message says what was found in it."""


class RanksError(PabError, RuntimeError):
    """The ranks of a mesh cannot run a model together, or disagree about how."""


class CalibrationError(PabError, ValueError):
    """No plan meets the request, or the measurements do not allow a choice."""


class ObservationError(PabError, ValueError):
    """An observation cannot be made or read. The message says what was found."""


class OptionError(PabError, ValueError):
    """An option is unknown, or its value is not accepted."""
