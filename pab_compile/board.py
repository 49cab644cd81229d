"""The board: where the statistics of the last generation of every model can be found."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable

import torch

from pab_compile.passes.errors import PabError

from .generation import Generation
from .stats import RunStats


class Board:
    """The last generation of every model, found by any of its weights; forgets with the model."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[int, tuple[weakref.ref[torch.Tensor], Generation]] = {}

    def publish(self, weight: torch.Tensor, running: Generation) -> None:
        """Record the generation that the model with this weight is in."""
        key = id(weight)
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry[1] is not running or entry[0]() is not weight:
                self._entries[key] = (weakref.ref(weight), running)

    def find(self, weights: Iterable[torch.Tensor]) -> RunStats | None:
        """Statistics of the last generation of the model that holds one of these weights."""
        with self._lock:
            for weight in weights:
                entry = self._entries.get(id(weight))
                if entry is not None and entry[0]() is weight:
                    return entry[1].stats()
        return None


board = Board()


def stats(compiled: torch.nn.Module) -> RunStats:
    """Statistics of the last generation of a compiled model, in whatever thread it ran.

    Args:
        compiled: the result of ``torch.compile(module, backend="pab")``, or a module on which
            ``module.compile(backend="pab")`` was called.

    Raises:
        PabError: the model has not run, or was not compiled with this backend.
    """
    found = board.find(compiled.parameters())
    if found is None:
        raise PabError(
            f"No statistics: this {type(compiled).__name__} has not completed a step compiled with "
            'backend="pab". Call it at least once, and pass the compiled module itself.'
        )
    return found
