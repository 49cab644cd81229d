"""Exit codes of ``pab``, and the error for a wrong use of it."""

from __future__ import annotations

OK = 0
REFUSED = 1
"""The library refused: the model, an option or a plan does not fit. The text says why."""
USAGE = 2
"""The command was used wrongly, or a file is missing or has not what is needed."""
FAILED = 3
"""A check of ``pab doctor`` failed."""
INTERRUPTED = 130
"""Ctrl-C. No half-written file is left."""


class UsageError(Exception):
    """The command was used wrongly. The message says what to do."""
