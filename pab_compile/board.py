"""The board: where the statistics of the last generation of every model can be found."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from pab_compile.passes.errors import PabError

from .generation import Generation
from .lower import Compilation, compilation_of
from .stats import RunStats


class Board:
    """The last generation of every compiled model; forgets with the model.

    A compiled model is told by one of its weights and by the options of its compilation, so that
    several compilations of one model are kept apart.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[int, tuple[weakref.ref[torch.Tensor], list[_Entry]]] = {}

    def publish(self, weight: torch.Tensor, options: object, running: Generation) -> None:
        """Record the generation that the model with this weight is in."""
        with self._lock:
            held = self._entries.get(id(weight))
            entries = held[1] if held is not None and held[0]() is weight else []
            if entries and entries[-1].running is running:
                return
            entries = [e for e in entries if e.options is not options]
            entries.append(_Entry(options, running))
            self._entries[id(weight)] = (weakref.ref(weight), entries)

    def find(
        self, weights: Iterable[torch.Tensor], compilation: Compilation | None
    ) -> RunStats | None:
        """Statistics of the last generation of a compiled model; of any compilation for None."""
        with self._lock:
            for weight in weights:
                held = self._entries.get(id(weight))
                if held is None or held[0]() is not weight:
                    continue
                for entry in reversed(held[1]):
                    if compilation is None or entry.options is compilation.options:
                        return entry.running.stats()
        return None


@dataclass(frozen=True, eq=False)
class _Entry:
    options: object
    running: Generation


board = Board()


def stats(compiled: torch.nn.Module) -> RunStats:
    """Statistics of the last generation of a compiled model, in whatever thread it ran.

    Args:
        compiled: the result of ``torch.compile(module, backend="pab")``, or a module on which
            ``module.compile(backend="pab")`` was called.

    Raises:
        PabError: the model has not run, or was not compiled with this backend.
    """
    found = board.find(compiled.parameters(), compilation_of(compiled))
    if found is None:
        raise PabError(
            f"No statistics: this {type(compiled).__name__} has not completed a step compiled with "
            'backend="pab". Call it at least once, and pass the compiled module itself.'
        )
    return found
