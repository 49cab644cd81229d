"""Errors of this library. Each says what was found, why that is a problem, and what to do."""


class PabError(Exception):
    """Base of every error that this library raises on purpose."""


class UnsupportedModelError(PabError):
    """The graph cannot be given a step-conditioned rewrite (no attention, no clock, ...)."""


class NoTimestepError(UnsupportedModelError):
    """No input of the graph can be the timestep."""

    def as_unsupported(self) -> UnsupportedModelError:
        """The error as users see it."""
        return UnsupportedModelError(str(self))


class NotTracedError(UnsupportedModelError):
    """No graph of plain ops does what the model does. It can only be run as it is."""


class InvariantError(PabError):
    """A pass broke an invariant of the graph. This is a defect of the library, not of the model."""


class ShardingError(PabError):
    """A graph cannot be sharded along an axis. The message names the op that prevents it."""


class StatedAxesError(PabError, ValueError):
    """The user's ``axes`` option does not fit the graph's inputs."""
