"""Last runs: where the last generation of every compiled model is found."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pab_compile.dynamo import Compilation, compilation_of
from pab_compile.errors import PabError
from pab_compile.passes.graph.wrapped import plain_tensors
from pab_compile.report.explanation import Finding

from .forward import Forward
from .generation import Generation
from .stats import RunStats


@dataclass(frozen=True, eq=False)
class LastRun:
    """The last generation of one compilation of one model.

    Attributes:
        weight: a weight of the model. It is alive as long as the model is.
        weights: ids of the weights, which identify the model.
        options: the options of the compilation, which identify it.
        running: the generation.
        findings: what was found in the graphs of its first call, which may still be running.
        breaks: why Dynamo broke the forward after each graph.
    """

    weight: weakref.ref[torch.Tensor]
    weights: frozenset[int]
    options: object
    running: Generation
    findings: Sequence[Finding]
    breaks: Sequence[str]


class LastRuns:
    """The last generation of every compiled model, as long as the model is alive.

    A compiled model is identified by its weights and by the options of its compilation. So several
    compilations of one model have their own entries, and so have models that share some weights.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[LastRun] = []

    def publish(
        self,
        weights: Sequence[torch.Tensor],
        options: object,
        run: Generation,
        forward: Forward,
    ) -> None:
        """Record the running generation of the model with these weights."""
        with self._lock:
            if self._entries and self._entries[-1].running is run:
                return
            key = frozenset(map(id, weights))
            kept = [e for e in self._entries if e.weight() is not None and e.running is not run]
            kept = [e for e in kept if e.weights != key or e.options != options]
            # The forward itself would keep tensors and compiled code alive.
            found = (forward.findings, forward.breaks)
            self._entries = [*kept, LastRun(weakref.ref(weights[0]), key, options, run, *found)]

    def find(self, module: torch.nn.Module, compilation: Compilation | None) -> LastRun | None:
        """The last generation of a compiled model.

        Args:
            module: the model.
            compilation: how it was compiled; None for any. Compilations with equal options count as
                one, as in Dynamo.
        """
        weights = (*module.parameters(), *module.buffers())
        own = {id(plain) for tensor in weights for _, plain in plain_tensors(tensor)}
        with self._lock:
            entries = [e for e in reversed(self._entries) if e.weight() is not None]
            mine = [entry for entry in entries if entry.weights <= own]
            if compilation is not None:
                mine = [entry for entry in mine if entry.options == compilation.options]
            return mine[0] if mine else None


last_runs = LastRuns()


def last_generation(compiled: torch.nn.Module, missing: str) -> LastRun:
    """The last generation of a compiled model.

    Args:
        compiled: the model.
        missing: how the error begins if there is no generation.
    """
    found = last_runs.find(compiled, compilation_of(compiled))
    if found is None:
        raise PabError(
            f"{missing}: this {type(compiled).__name__} has not completed a step compiled with "
            'backend="pab". Call it at least once, and pass the compiled module itself. If torch '
            "warned of recompile_limit, the model ran without being compiled. Dynamo limits the "
            "number of compilations (plans and sizes) of one model's code: raise "
            "torch.compiler.config.recompile_limit."
        )
    return found


def stats(compiled: torch.nn.Module) -> RunStats:
    """Statistics of the last generation of a compiled model, in whatever thread it ran.

    Args:
        compiled: the result of ``torch.compile(module, backend="pab")``, or a module on which
            ``module.compile(backend="pab")`` was called.

    Raises:
        PabError: the model has not run, or was not compiled with this backend.
    """
    return last_generation(compiled, "No statistics").running.stats()
