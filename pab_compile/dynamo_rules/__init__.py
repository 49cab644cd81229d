"""What Dynamo follows for this backend, where it alone breaks the graph or hides an attention.

Every rule holds while Dynamo traces for a marked backend. Other backends of the process see no
difference. A torch that lacks what a rule extends stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import kept_modules, known_numbers, sdp_kernel, transformer_layers
from .known_numbers import state_sizes
from .marks import mark

__all__ = ["follows_more", "state_sizes"]


def follows_more(backend: Callable[..., Any]) -> Callable[..., Any]:
    """Let Dynamo follow more of a model when it traces for this backend.

    Args:
        backend: a function that Dynamo gives its graphs to. It is marked, and returned.
    """
    mark(backend)
    for rule in (kept_modules, known_numbers, sdp_kernel, transformer_layers):
        rule.extend_dynamo()
    return backend
